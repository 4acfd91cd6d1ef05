"""The engine around the programs: where they are made and kept, what a machine without a compiler does, and errors."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from _fused import Program, same_bits
from test_fused_refusals import PLAIN

from fedjax_rl.cli import main
from fedjax_rl.envs import make_env, resolve_backend
from fedjax_rl.envs import physics as seam
from fedjax_rl.envs.physics import Model, make_physics
from fedjax_rl.envs.physics.fused import cache, compiler, engine

ONE_STEP = """
import glob, hashlib, json, os, sys
import jax, jax.numpy as jnp
from fedjax_rl.envs.physics import Model, make_physics
from fedjax_rl.envs.physics.fused import engine
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
for name, value in (("min_compile_time_secs", 0.0), ("min_entry_size_bytes", -1)):
    jax.config.update(f"jax_persistent_cache_{name}", value)
xml = sys.stdin.read()
physics = engine.make_fused(Model(xml, frame_skip=7))
made = glob.glob(os.environ["XDG_CACHE_HOME"] + "/fedjax_rl/fused/*.cc")
after = jax.jit(lambda q: physics.step(physics.init(q, jnp.ones(5)), jnp.ones(1)))(jnp.zeros(5))
bits = hashlib.sha256(b"".join(x.tobytes() for x in map(jax.device_get, after))).hexdigest()
name = engine.target(engine.source(xml), False)
print(json.dumps([bits, name, hits.count("/jax/compilation_cache/cache_hits"), len(made)]))
"""


@pytest.fixture
def afresh():
    """What the process has found out about its compiler is forgotten, before and after."""
    for _ in range(2):
        compiler.find.cache_clear()
        seam._no_fused.cache_clear()
        seam._say_once.cache_clear()
        if _ == 0:
            yield


def small() -> tuple[mujoco.MjModel, object]:
    """A robot whose program compiles in a second."""
    return mujoco.MjModel.from_xml_string(PLAIN), engine.make_fused(Model(PLAIN, frame_skip=2))


def processes(count: int, home: Path) -> list[list]:
    """What ONE_STEP prints in processes that run at once."""
    environment = os.environ | {"XDG_CACHE_HOME": str(home), "JAX_COMPILATION_CACHE_DIR": str(home / "jax")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([sys.executable, "-c", ONE_STEP], **pipes) for _ in range(count)]
    for process in running:
        process.stdin.write(PLAIN)
        process.stdin.close()
        process.stdin = None
    out = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    return [json.loads(text) for text in out]


def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path):
    """The same bits and name, whole files and nothing else left; a later process takes all from the caches."""
    first, second = processes(2, tmp_path)
    assert first[:2] == second[:2]
    assert first[3] == 0 or second[3] == 0  # nothing is made before a step is
    made = sorted((tmp_path / "fedjax_rl/fused").iterdir())
    assert sorted(x.suffix for x in made if x.is_file()) == [".cc", ".so", ".so"]  # with the compiler's trial
    before = [(x, x.stat().st_mtime_ns) for x in made]
    [third] = processes(1, tmp_path)
    assert third[:2] == first[:2] and third[2] > 0  # JAX's own cache knew the program, by the target's name
    assert [(x, x.stat().st_mtime_ns) for x in sorted((tmp_path / "fedjax_rl/fused").iterdir())] == before


def test_the_cache_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    path = cache.directory()
    assert path == tmp_path / "caches/fedjax_rl/fused" and stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)  # somebody else could put a program there
    assert cache.directory() != path and stat.S_IMODE(cache.directory().stat().st_mode) == 0o700


@pytest.mark.parametrize("home", ["", "a file"])
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, home):
    """Neither is a user without a home: no HOME and no entry in passwd."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if home else "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    path = cache.kept("a.txt", lambda path: path.write_text("once"))
    assert path.read_text() == "once" and tmp_path not in path.parents
    assert cache.kept("a.txt", lambda path: path.write_text("twice")).read_text() == "once"


def test_without_a_compiler_it_is_native_and_one_line(monkeypatch, capsys, afresh):
    monkeypatch.setattr(compiler, "candidates", lambda: iter([("no-such-compiler",)]))
    assert [resolve_backend(name) for name in ("auto", "fused", "auto")] == ["native"] * 3
    error = capsys.readouterr().err
    assert "no C++ compiler; g++ or `pip install 'fedjax-rl[compiler]'` makes it ten times as fast" in error
    assert "C MuJoCo (native) instead" in error and error.count("\n") == 1
    env = make_env("half_cheetah/direction", backend="fused")
    assert env.reset(jax.random.key(0), 1.0).physics.engine.dtype == jnp.uint32  # native's carry
    assert capsys.readouterr().err == ""


def test_with_a_compiler_auto_is_fused_for_the_robots_that_it_carries(capsys, afresh):
    assert resolve_backend() == "fused"
    carries = lambda xml: make_physics(Model(xml, 1)).init(jnp.zeros(5), jnp.zeros(5)).engine.dtype == jnp.float32
    assert carries(PLAIN) and capsys.readouterr().err == ""
    assert not carries(PLAIN.replace("<option", '<option density="1000"'))
    assert "no fused physics: fused physics does not carry option density (fluid forces)" in capsys.readouterr().err


def test_without_fused_multiply_add_it_is_native(monkeypatch, capsys, afresh):
    monkeypatch.setattr(compiler, "cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve_backend("fused") == "native"
    assert "no x86 processor with AVX2 and FMA" in capsys.readouterr().err


def test_a_broken_compiler_shows_its_first_error_and_the_next_one_is_tried(tmp_path, monkeypatch, capsys, afresh):
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\ntest "$1" = --version && exit\necho "In file" >&2\necho "x.cc:1: error: no header" >&2\nexit 1\n'
    )
    broken.chmod(0o700)
    monkeypatch.setattr(compiler, "candidates", lambda: iter([(str(broken),)]))
    assert resolve_backend("fused") == "native"
    assert f"{broken}: x.cc:1: error: no header;" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(broken))
    compiler.find.cache_clear()
    assert next(compiler.candidates()) == (str(broken),) and compiler.find().command != (str(broken),)


def test_a_compiler_that_cannot_be_read_is_passed_over(monkeypatch, afresh):
    monkeypatch.setenv("CXX", "g++ 'no end")
    assert "no end" not in " ".join(compiler.find().command)


def test_what_the_compiler_is_told_besides_changes_no_bit(tmp_path, monkeypatch, afresh):
    """-ffast-math in $CXX is taken back."""
    found, rng = compiler.find(), np.random.default_rng(0)
    rows = [np.float32(rng.normal(size=(64, size))) for size in (5, 5, 5, 1)]
    text = engine.text_of(engine.source(PLAIN), False)
    fast = found._replace(command=(*found.command, "-ffast-math", "-Ofast"))
    assert same_bits(Program(text, fast)(rows, 50), Program(text, found)(rows, 50))


def test_a_programs_file_is_named_by_all_that_it_is_made_of(tmp_path, monkeypatch, afresh):
    """The compiler, its options and XLA's interface; and of a robot also the files that its MJCF includes."""
    found, header = compiler.find(), tmp_path / "xla/ffi/api/c_api.h"
    other = found._replace(version="another"), found._replace(command=(*found.command, "-g"))
    names = []
    monkeypatch.setattr(cache, "kept", lambda name, make: names.append(name))
    for used in (found, found, *other):
        used.build("text")
    header.parent.mkdir(parents=True)
    header.write_text("// of another jaxlib")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    found.build("text")
    assert names[0] == names[1] and len(set(names)) == 4
    part, xml = tmp_path / "part.xml", f'<mujoco><include file="{tmp_path}/part.xml"/></mujoco>'
    made = []
    for damping in (1, 1, 5):
        joint = f'<joint damping="{damping}"/><geom size="0.1" contype="0" conaffinity="0"/>'
        part.write_text(f"<mujoco><worldbody><body>{joint}</body></worldbody></mujoco>")
        made.append(engine.source(xml))
    assert made[0] == made[1] != made[2]


def test_widths_fit_the_processor(monkeypatch, afresh):
    flags = compiler.cpu_flags()
    assert compiler.find().width == (16 if "avx512f" in flags else 8)
    asked = []
    monkeypatch.setattr(compiler.Compiler, "build", lambda self, text: asked.append(self.width) or sys.executable)
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda path: None)
    for names, width in (({"avx512f", "avx2", "fma"}, 16), ({"avx2", "fma"}, 8)):
        monkeypatch.setattr(compiler, "cpu_flags", lambda names=names: names)
        compiler.find.cache_clear()
        assert compiler.find().width == width and asked[-1] == width


def test_the_handlers_errors_are_one_line():
    model, physics = small()
    state = physics.init(jnp.zeros(model.nq), jnp.zeros(model.nv))
    physics.step(state, jnp.zeros(model.nu))
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in (model.nq, model.nv, model.nv)]
    call = jax.ffi.ffi_call(engine.target(engine.source(PLAIN), False), shapes)
    for inputs, said in (
        ((*state, jnp.zeros(3)), "fused physics: input 3 must be float32 [1, 1]"),
        ((*state, jnp.zeros(1, jnp.int32)), "fused physics: input 3 must be float32 [1, 1]"),
        (tuple(state), "fused physics: another number of arrays than it was made for"),
    ):
        with pytest.raises(Exception, match=said.replace("[", r"\[")) as caught:
            call(*inputs, substeps=np.int32(1))
        assert "\n" not in str(caught.value)


def test_an_empty_batch_is_one():
    model, physics = small()
    step = jax.vmap(lambda q, v, u: physics.step(physics.init(q, v), u))
    assert step(jnp.zeros((0, model.nq)), jnp.zeros((0, model.nv)), jnp.zeros((0, model.nu))).qpos.shape == (
        0,
        model.nq,
    )


def test_an_unbatched_control_is_broadcast_over_the_batch():
    model, physics = small()
    qpos = jnp.arange(15.0).reshape(3, 5) / 64
    step = lambda q, u: physics.step(physics.init(q, jnp.ones(model.nv)), u)
    shared = jax.vmap(step, (0, None))(qpos, jnp.ones(1))
    own = jax.vmap(step)(qpos, jnp.ones((3, 1)))
    jax.tree.map(np.testing.assert_array_equal, shared, own)


def test_a_run_keeps_the_engine_that_it_began_on(tmp_path, capsys, monkeypatch, afresh):
    """Training and evaluation of clients with robots of their own; a machine without a compiler refuses to go on."""
    out = tmp_path / "run"
    options = ["--env", "half_cheetah/dynamics", "--backend", "fused", "--out", str(out), "--quiet"]
    little = "--preset tiny --hidden 4 --local-steps 1 --order first".split()
    assert main(["train", *little, *options]) == 0
    assert 'backend = "fused"' in (out / "config.toml").read_text()
    assert (out / "eval.jsonl").read_text().count("\n") > 0 and "native" not in capsys.readouterr().err
    assert main(["report", str(out)]) == 0 and "half_cheetah/dynamics on fused physics" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for known in (compiler.find, seam._no_fused, seam._say_once):
        known.cache_clear()
    monkeypatch.setattr(compiler, "candidates", lambda: iter(()))
    assert main(["resume", str(out), "--rounds", "3", "--quiet"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"fedjax-rl: {out} was begun on fused physics; there is no fused physics here: no C++ compiler"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main(["eval", str(out), "--clients", "new", "--new-clients", "1"]) == 0
    assert capsys.readouterr().err.count("C MuJoCo (native) instead") == 1
