"""The physics engine is a part of a run: its files name it, whatever `auto` is on the next machine."""

import json

import pytest

from fedjax_rl import config
from fedjax_rl.envs import physics
from fedjax_rl.host import registry
from fedjax_rl.runs import rundir, runner, sweep


def small(env, **values):
    return config.build("fmrl", {"env": env, "num_clients": 2, "clients_per_round": 1, **values})


@pytest.fixture
def made(tmp_path):
    """A run directory's text files, as an earlier version wrote them: `auto`, and perhaps a device."""

    def make(env, device=None, backend="auto"):
        path = tmp_path / f"{env.replace('/', '_')}-{device}-{backend}"
        path.mkdir()
        rundir.write_config(path, small(env, backend=backend))
        if device is not None:
            (path / rundir.ENV).write_text(json.dumps({"device": device}))
        return path

    return make


@pytest.mark.parametrize(
    ("env", "device", "backend", "named"),
    [
        ("half_cheetah/direction", None, "auto", "native"),
        ("half_cheetah/direction", "cpu", "auto", "native"),
        ("ant/velocity", "NVIDIA H100 80GB HBM3", "auto", "mjx"),
        ("ant/velocity", "NVIDIA H100 80GB HBM3", "native", "native"),
        ("half_cheetah/dynamics", "cpu", "fused", "fused"),
        ("navigation", "cpu", "auto", "auto"),
    ],
)
def test_auto_of_an_earlier_run_is_what_it_was_then(made, env, device, backend, named):
    path = made(env, device, backend)
    assert rundir.open_run(path).backend == named
    assert runner.with_engine(path, small(env)).backend == named  # asked for `auto`, which the run decides


def test_an_earlier_env_json_that_says_nothing_is_a_cpus(made):
    path = made("ant/direction")
    for text in ("", "[]", "{}", "\0"):
        (path / rundir.ENV).write_text(text)
        assert rundir.open_run(path).backend == "native"


def test_the_plan_of_an_earlier_sweep(tmp_path, made):
    member = made("ant/direction", "NVIDIA H200")
    members = {member: small("ant/direction"), member.with_name("b"): small("ant/direction", seed=1)}
    rundir.create_sweep(tmp_path, members, 0)
    assert [c.backend for c in rundir.read_sweep(tmp_path)[0].values()] == ["mjx", "mjx"]


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_a_new_run_names_its_engine(tmp_path, monkeypatch, machine):
    monkeypatch.setattr(physics, "platform", lambda: machine)
    here = {"cpu": physics.resolve_backend(), "gpu": "mjx"}[machine]
    assert here in physics.BACKENDS
    not_carried = "native" if here == "fused" else here  # by fused physics
    engines = {"half_cheetah": here, "ant": here, **dict.fromkeys(("hopper", "walker2d", "swimmer"), not_carried)}
    for env in registry.OWN["environment"]:
        assert runner.with_engine(tmp_path / "new", small(env)).backend == engines.get(env.split("/")[0], "auto")
    assert runner.with_engine(tmp_path / "new", small("ant/velocity", backend="native")).backend == "native"


def test_engines_can_be_compared_in_a_sweep(tmp_path):
    grid = sweep.parse_grid(["backend=native,mjx"], small("ant/velocity"))
    assert [c.backend for c in sweep.members(small("ant/velocity"), grid, [0], tmp_path).values()] == ["native", "mjx"]
