"""Environments, algorithms, policies and aggregators that are not ours: by place, by entry point, by registration."""

import functools
import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl import cli, config, testing
from fedjax_rl.algorithms.fedavg import fedavg
from fedjax_rl.api.registering import register_algorithm
from fedjax_rl.cli.parse import parse_train
from fedjax_rl.config import ConfigError
from fedjax_rl.config.guests import Range, config_of
from fedjax_rl.config.sources import environment_layer, load, to_toml
from fedjax_rl.envs import Env, EnvSpec, EnvState, make_env, tasks
from fedjax_rl.envs.soundness import refuse_unsound
from fedjax_rl.federation.aggregators import mean
from fedjax_rl.host import registry
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.runs import assemble, sweep
from fedjax_rl.types import Upload

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin" / "src"
FEDSIGN, WINDY = "fedjax_rl_windy.fedsign:fedsign", "fedjax_rl_windy.windy:windy"
SMALL = "--preset tiny --hidden 4 --new-clients 2 --adapt-steps 1 --quiet".split()


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))


@pytest.fixture
def fresh(monkeypatch):
    """No registration and no entry point outlives the test."""
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})
    registry.guests.cache_clear()
    yield
    registry.guests.cache_clear()


def test_a_guest_by_place_trains_resumes_evaluates_reports_and_sweeps(plugin, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", FEDSIGN, "--env", WINDY, *SMALL, "--scale", "0.5", "--out", str(run)]) == 0
    stored = load(run / "config.toml")
    assert (stored.algorithm, stored.env, stored.scale) == (FEDSIGN, WINDY, 0.5)
    assert cli.main(["resume", str(run), "--rounds", "3", "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    assert json.loads(capsys.readouterr().out)["returns"] == last["eval/returns"]
    assert cli.main(["report", str(run), "--format", "csv"]) == 0
    assert FEDSIGN in capsys.readouterr().out
    grid = ["--grid", "scale=0.1,0.2", "--seeds", "0:2", "--out", str(tmp_path / "sweep")]
    assert cli.main(["sweep", FEDSIGN, "--env", WINDY, *SMALL, *grid]) == 0
    assert len(list((tmp_path / "sweep").glob("*/eval.jsonl"))) == 4


def entry(kind, name, value):
    return EntryPoint(name, value, registry.GROUPS[kind])


def test_entry_points_are_found_by_name_and_listed(plugin, fresh, monkeypatch, capsys):
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [e for e in (ENTRY_SIGN, ENTRY_WINDY) if e.group == group]
    )
    assert config.config_class("fedsign")().scale == 1e-3
    assert make_env("windy").spec.name == "windy"
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "fedsign" in listed["algorithms"] and "windy" in listed["environments"]


ENTRY_SIGN, ENTRY_WINDY = entry("algorithm", "fedsign", FEDSIGN), entry("environment", "windy", WINDY)


def test_a_broken_entry_point_and_two_of_one_name_are_one_line_each(fresh, monkeypatch, capsys):
    class Distribution:
        def __init__(self, name):
            self.name = name

    broken = entry("environment", "lost", "no_such_module:env")
    monkeypatch.setattr(EntryPoint, "dist", Distribution("mydist"), raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert cli.main(["train", "--env", "lost", *SMALL]) == 2
    error = capsys.readouterr().err
    assert "environment 'lost' of the distribution mydist cannot be imported: ModuleNotFoundError" in error
    registry.guests.cache_clear()
    twice = [entry("algorithm", "same", "a:b"), entry("algorithm", "same", "c:d")]
    monkeypatch.setattr(registry, "entry_points", lambda group: twice)
    with pytest.raises(ConfigError, match="'same': mydist and mydist both have it; uninstall one"):
        config.config_class("same")


def test_a_name_that_exists_is_not_registered_twice(fresh):
    registry.register("algorithm", lambda problem: None, "mine")
    for name in ("fmrl", "mine"):
        with pytest.raises(ConfigError, match=f"algorithm '{name}' exists already"):
            registry.register("algorithm", test_a_name_that_exists_is_not_registered_twice, name)


@pytest.mark.parametrize("name", ["my-nav", "gymnax/CartPole-v1", "a:b", "3d"])
def test_a_name_that_no_run_could_be_opened_by_is_refused(name, fresh):
    """Hyphens, other people's libraries, module:name: another process would not find what the run was of."""
    with pytest.raises(ConfigError, match=r"a name is of letters, digits and _, such as '[a-z]"):
        registry.register("environment", lambda: env(), name)


def test_one_factory_under_two_names_has_batches_of_each(fresh):
    """Bound methods and partials can be registered too, again and again, as in a notebook."""
    for batches in (1, 2):
        register_algorithm(gentle, f"gentle_{batches}", batches=batches)
    assert [config.config_class(f"gentle_{n}")().batches for n in (1, 2)] == [1, 2]
    for batches in (2, 3):
        register_algorithm(functools.partial(gentle), "again", batches=batches)
        assert config.config_class("again")().batches == batches
    for _ in range(2):
        registry.register("environment", functools.partial(env), "environment_of_a_partial")


def gentle(
    problem,
    *,
    server_opt,
    client_opt,
    local_steps,
    flag: bool = True,
    count: int = 3,
    mu: Annotated[float, Range(0, 1)] = 0.5,
    kind: Literal["a", "b"] = "b",
    note: str = "x",
    bare=2.5,
):
    """Gentle: an example.

    More of it.
    """


def test_options_come_from_the_signature(tmp_path):
    cls = config_of("m:gentle", gentle)
    made = cls()
    assert (made.flag, made.count, made.mu, made.kind, made.note, made.bare) == (True, 3, 0.5, "b", "x", 2.5)
    assert cls.__doc__ == "Gentle: an example." and made.batches == 1 and cls.max_change_norm == 0.0
    for key, value in (("flag", 1), ("count", 2.0), ("mu", 1.1), ("kind", "c"), ("note", 3), ("bare", "y")):
        with pytest.raises(ConfigError, match=f"{key} = "):
            cls(**{key: value})
    registered = registry.register("algorithm", gentle, "gentle_in_a_test")
    try:
        changed = config.config_class("gentle_in_a_test")(flag=False, note='say "no"', mu=0.25)
        (tmp_path / "config.toml").write_text(to_toml(changed))
        assert load(tmp_path / "config.toml") == changed
        assert environment_layer("gentle_in_a_test", {"FEDJAX_RL_FLAG": "False"}) == {"flag": False}
        assert sweep.parse_grid(["flag=true,false", "mu=0.1,1"], changed) == {"flag": [True, False], "mu": [0.1, 1.0]}
    finally:
        del registry._REGISTERED["algorithm"]["gentle_in_a_test"]
        assert registered is gentle


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size", "option size has no default"),
        ("size: list = []", "option size has the type list; possible are bool, int"),
        ("size: complex = 1j", "option size has the type complex"),
        ("size: Annotated[float, Range(0, 1)] = 2.0", "option size has the default 2.0, which is not from 0 to 1"),
        ("size: Literal[1, 2] = 1", "option size has the choices"),
        ("rounds: int = 1", "option rounds is one of the library's"),
        ("server_lr: float = 1.0", "option server_lr is one of the library's"),
        ("model='a'", "option model is one of the library's"),
        ("batches=2", "option batches is one of the library's"),
        ("is_over=2", "option is_over is one of the library's"),
        ("log=0.1", "option log is one of the library's"),
        ("out=0.1", "option out is one of the library's"),
        ("cache=True", "option cache is one of the library's"),
        ("size: float = None", "option size has the default None, which is not of its type"),
        ("size: int = 1.5", "option size has the default 1.5, which is not of its type"),
        ("size: int = True", "option size has the default True, which is not of its type"),
        ("size: bool = 1", "option size has the default 1, which is not of its type"),
        ("size: str = 1", "option size has the default 1, which is not of its type"),
        ("size: Literal['a', 'b'] = 'c'", "option size has the default 'c', which is not of its type"),
    ],
)
def test_options_that_cannot_be_typed_are_named(argument, message):
    space = {"Annotated": Annotated, "Range": Range, "Literal": Literal}
    exec(f"def factory(problem, *, {argument}): pass", space)
    with pytest.raises(ConfigError, match=message):
        config_of("m:factory", space["factory"])


def test_an_option_may_share_the_part_of_a_name_and_a_number_may_be_whole():
    def close(problem, *, cache=2, rate=1, mu: float = 1):
        pass

    cls = config_of("m:close", close)
    assert (cls().cache, cls().rate, cls().mu, type(cls().mu)) == (2, 1, 1.0, float)


UNIFORM = tasks.uniform(0.0, 1.0)


def env(reset=None, step=None, sample=UNIFORM):
    start = EnvState(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.zeros((), bool))
    spec = EnvSpec("mine", observation_size=2, action_size=1, horizon=5, init_inputs=2)
    return Env(reset or (lambda key, task: start), step or (lambda state, action, task: state), sample, spec)


UNSOUND = {
    "reset gives obs int32 [2]; it must be float32 [2]": env(
        lambda key, task: EnvState((), jnp.zeros(2, jnp.int32), jnp.zeros(()), jnp.zeros((), bool))
    ),
    "step gives done float32 []; it must be bool []": env(step=lambda s, a, t: s._replace(done=jnp.zeros(()))),
    "step gives reward float32 [1]; it must be float32 []": env(step=lambda s, a, t: s._replace(reward=a)),
    "step gives a state float32[3], reset one of float32[2]": env(step=lambda s, a, t: s._replace(physics=jnp.ones(3))),
    "the second step gives obs float32 [3]": env(
        step=lambda s, a, t: s._replace(physics=jnp.ones(3), obs=jnp.ones(s.physics.shape[0]))
    ),
    "reset gives numbers that are not finite": env(
        lambda key, task: EnvState((), jnp.full(2, jnp.nan), jnp.zeros(()), jnp.zeros((), bool)), lambda s, a, t: s
    ),
    "reset gives numbers that are not finite, or beyond 1e+10, in physics['seen']; an episode would be over there": env(
        lambda key, task: EnvState(
            {"n": jnp.ones((), jnp.int32), "seen": jnp.full(3, -jnp.inf)},
            jnp.zeros(2),
            jnp.zeros(()),
            jnp.zeros((), bool),
        ),
        lambda s, a, t: s,
    ),
    "step gives numbers that are not finite, or beyond 1e+10, in reward; an episode would be over there": env(
        step=lambda s, a, t: s._replace(reward=jnp.full((), 2e10))
    ),
    "step fails: ZeroDivisionError: division by zero (test_guests.py, line ": env(step=lambda s, a, t: 1 / 0),
    "step fails: JSONDecodeError: Expecting value: line 1 column 1 (char 0) (test_guests.py, line ": env(
        step=lambda s, a, t: json.loads("x")
    ),
    "sample_tasks fails: ZeroDivisionError: division by zero (test_guests.py, line ": env(sample=lambda key, n: 1 / 0),
    "reset gives a tuple; it must be an EnvState": env(lambda key, task: (1, 2)),
    "sample_tasks must draw task i from the key and i alone": env(sample=lambda key, n: jnp.full(n, 1.0 / n)),
}


@pytest.mark.parametrize("message", UNSOUND)
def test_an_unsound_environment_is_refused_by_function_and_fault(message):
    with pytest.raises(ConfigError) as error:
        refuse_unsound(UNSOUND[message], "environment 'mine'")
    assert str(error.value).startswith(f"environment 'mine': {message}") and "\n" not in str(error.value)


def test_a_guest_that_sends_several_messages_a_round_is_not_called_private(fresh):
    def twice(problem, *, client_opt, server_opt, local_steps, inner_lr):
        given = {"client_opt": client_opt, "server_opt": server_opt, "local_steps": local_steps, "inner_lr": inner_lr}
        made = fedavg(problem, **given)

        def again(shared, client, task, key, number):
            return Upload(jax.tree.map(jnp.zeros_like, shared), jnp.ones(())), client

        return made._replace(exchanges=(2, again))

    registry.register("algorithm", twice, "twice")
    small = {"env": "navigation", "hidden": (4,), "num_clients": 4, "clients_per_round": 2}
    assemble.make_run(config.build("twice", small))
    with pytest.raises(
        ConfigError, match=r"dp_clip: not for twice: the accountant counts one message a round, .* send 3"
    ):
        assemble.make_run(config.build("twice", {**small, "dp_clip": 0.1, "dp_noise": 1.0}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *(
            ({"horizon": value}, f"horizon = {value!r}; it must be an int, 1 or")
            for value in (0, -1, 30.0, "30", np.int64(3))
        ),
        ({"num_actions": -2}, "num_actions = -2; it must be an int, 0 or more"),
        ({"num_actions": 2.5}, "num_actions = 2.5; it must be an int, 0 or more"),
        ({"num_actions": True}, "num_actions = True; it must be an int, 0 or more"),
        ({"action_size": "2"}, "action_size = '2'; it must be an int, 1 or more"),
        ({"action_size": 0}, "action_size = 0; it must be an int, 1 or more"),
        ({"action_size": 2, "num_actions": 3}, "action_size = 2 with num_actions = 3; it must be 1 where actions are"),
        ({"observation_size": 2.0}, "observation_size = 2.0; it must be an int, 1 or more"),
        ({"init_inputs": -1}, "init_inputs = -1; it must be an int, 1 or more"),
        ({"init_inputs": 1}, "init_inputs = 1; it must be observation_size = 2, or more where"),
    ],
)
def test_sizes_that_are_none_are_refused_by_training_and_by_the_check_of_environments(
    changed, message, fresh, tmp_path, capsys
):
    wrong = env()._replace(spec=env().spec._replace(**changed))
    registry.register("environment", lambda: wrong, "wrong")
    assert cli.main(["train", "--env", "wrong", *SMALL, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"environment 'wrong': its spec has {message}" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError) as refused:
        testing.check_environment(wrong)
    assert f"environment 'mine': its spec has {message}" in str(refused.value)


def test_sizes_as_ours_have_them_are_sound():
    for name in ("navigation", "finite/random"):  # continuous and discrete actions
        assert refuse_unsound(make_env(name), name) is None
    assert refuse_unsound(env()._replace(spec=env().spec._replace(init_inputs=125)), "of a lineage") is None


def test_a_guest_is_refused_before_anything_is_written(fresh, tmp_path, capsys):
    registry.register("environment", lambda: env(step=lambda s, a, t: 1 / 0), "unsound")
    assert cli.main(["train", "--env", "unsound", *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "environment 'unsound': step fails: ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys; sys.exit(0)", "environment 'a_guest:env' cannot be imported: SystemExit: 0"),
        ("def env(): raise TypeError('no size')", "environment 'a_guest:env' cannot be made: TypeError: no size"),
        ("def env(): raise SystemExit(0)", "environment 'a_guest:env' cannot be made: SystemExit: 0"),
    ],
)
def test_a_module_or_factory_that_exits_or_raises_is_one_line(body, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_guest.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_guest", raising=False)
    assert cli.main(["train", "--env", "a_guest:env", *SMALL, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["algorithm", "policy", "aggregator"])
def test_what_a_factory_raises_names_it(kind, fresh):
    def broken(*args, **given):
        return {}["lost"]

    factory = {"algorithm": lambda problem: broken(), "policy": lambda spec: broken(), "aggregator": lambda: broken()}
    registry.register(kind, factory[kind], "broken")
    values = {"env": "navigation", "num_clients": 2, "clients_per_round": 2}
    algorithm, more = ("broken", {}) if kind == "algorithm" else ("fedavg", {kind: "broken"})
    with pytest.raises(
        ConfigError, match=f"^{kind} 'broken' cannot be made: KeyError: 'lost' \\(test_guests.py, line \\d+\\)$"
    ):
        assemble.make_run(config.build(algorithm, values, more))


def algorithm(**changed):
    """A factory of FedAvg with other functions: each gets what the true one gives."""

    def factory(problem, *, client_opt, server_opt, local_steps, inner_lr, mu: float = 1.0):
        given = {"client_opt": client_opt, "server_opt": server_opt, "local_steps": local_steps, "inner_lr": inner_lr}
        true = fedavg(problem, **given)
        other = lambda key, change: lambda *args: change(getattr(true, key)(*args), mu)
        return true._replace(**{key: other(key, change) for key, change in changed.items()})

    return factory


def fail(found, mu):
    raise ValueError("my bug\nand more")


def aggregator(update):
    return lambda: mean()._replace(update=lambda *args: update(*mean().update(*args)))


def policy(change):
    def factory(spec, *, hidden):
        true = gaussian_mlp(spec, hidden=hidden)
        return true._replace(apply=lambda params, obs: change(true.apply(params, obs)))

    return factory


def first(found, mu):
    return next(iter(found))


HERE = rf" \(test_guests.py, line {fail.__code__.co_firstlineno + 1}\)$"
FAULTS = {
    "nothing": (lambda problem: None, "algorithm 'x' gives None; it must give an Algorithm$"),
    "fails": (algorithm(client_update=fail), f"algorithm 'x': client_update fails: ValueError: my bug{HERE}"),
    "adapt": (algorithm(adapt=fail), f"algorithm 'x': adapt fails: ValueError: my bug{HERE}"),
    "init": (algorithm(init=lambda s, mu: tuple(s)), "algorithm 'x': init gives a tuple; it must be a Server$"),
    "two": (
        algorithm(client_update=lambda done, mu: done[:2]),
        r"algorithm 'x': client_update gives \(Upload, tuple\); it must be \(Upload, client, metrics\)$",
    ),
    "weight": (
        algorithm(client_update=lambda done, mu: (done[0]._replace(weight=jnp.ones(1)), *done[1:])),
        r"algorithm 'x': client_update gives a weight of shape \[1\]; it must be \[\]$",
    ),
    "metric": (
        algorithm(client_update=lambda done, mu: (*done[:2], {"y": jnp.ones(2)})),
        r"algorithm 'x': client_update gives the metric 'y' of shape \[2\]; it must be \[\]$",
    ),
    "client": (
        algorithm(client_update=lambda done, mu: (done[0], jnp.ones(2), done[2])),
        r"algorithm 'x': client_update gives a client with float32\[2\] at its root; it must be nothing$",
    ),
    "tree": (
        algorithm(client_update=lambda done, mu: (done[0]._replace(message={"y": jnp.ones(2)}), *done[1:])),
        "algorithm 'x': server_update fails: ValueError: ",
    ),
    "server": (
        algorithm(server_update=lambda s, mu: s._replace(shared=jax.tree.map(jnp.sum, s.shared))),
        r"algorithm 'x': server_update gives a server with float32\[\] at .*; it must be float32\[",
    ),
    "library": (algorithm(init_client=lambda c, mu: "word"), "a round with algorithm 'x' fails: TypeError: "),
    "three": (lambda: 3, "aggregator 'x' gives a value of type int; it must give an Aggregator$"),
    "sum": (aggregator(fail), f"aggregator 'x': update fails: ValueError: my bug{HERE}"),
    "scalar": (
        aggregator(lambda message, state: (jax.tree.map(jnp.sum, message), state)),
        r"aggregator 'x': update gives a message with \[\] at .*; it must be \[",
    ),
    "number": (lambda spec: 3, "policy 'x' gives a value of type int; it must give a Policy$"),
    "apply": (policy(lambda head: fail(head, 0)), f"policy 'x': apply fails: ValueError: my bug{HERE}"),
    "head": (policy(lambda head: head[0]), "a round with policy 'x' fails: ValueError: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_guest_that_fails_is_one_line_before_anything_is_written(fault, fresh, tmp_path, capsys):
    factory, message = FAULTS[fault]
    kind = re.search("algorithm|aggregator|policy", message)[0]
    registry.register(kind, factory, "x")
    asked = ["x"] if kind == "algorithm" else ["fedavg", f"--{kind}", "x"]
    given = [*asked, "--env", "navigation", *SMALL]
    for command in (["train", *given], ["sweep", *given, "--seeds", "0:2"])[: 2 if fault in ("fails", "sum") else 1]:
        assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err.rstrip()
        assert re.match(f"fedjax-rl: {message}", error) and "\n" not in error
        assert not (tmp_path / "run").exists()


def test_a_guest_that_asks_a_number_of_a_sweep_is_named_before_anything_is_written(fresh, tmp_path, capsys):
    asks = algorithm(client_update=lambda done, mu: done if mu > 0 else done[:2])
    registry.register("algorithm", asks, "asks")
    given = ["sweep", "asks", "--env", "navigation", *SMALL, "--seeds", "0:1", "--grid", "mu=1,2"]
    assert cli.main([*given, "--out", str(tmp_path / "sweep")]) == 2
    assert "algorithm 'asks': client_update fails: TracerBoolConversionError" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_who_ends_a_trial_ends_it_and_ours_are_not_tried(fresh, monkeypatch):
    def interrupted(found, mu):
        raise KeyboardInterrupt

    registry.register("algorithm", algorithm(client_update=interrupted), "x")
    small = {"env": "navigation", "hidden": (4,), "num_clients": 4, "clients_per_round": 2}
    with pytest.raises(KeyboardInterrupt):
        assemble.make_group([config.build("x", small)])
    monkeypatch.setattr(jax, "eval_shape", None)
    assemble.make_group([config.build("fedavg", small)])


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "None; it must give an Env"), (3, "a value of type int; it must give an Env")],
)
def test_a_factory_that_gives_no_environment_is_named(given, message, fresh):
    registry.register("environment", lambda: given, "none")
    with pytest.raises(ConfigError, match=f"^environment 'none' gives {message}$"):
        make_env("none")


def test_the_help_of_a_guest_has_the_texts_of_ours(fresh, capsys):
    registry.register("algorithm", gentle, "gentle")
    shown = {}
    for name in ("gentle", "fedavg"):
        with pytest.raises(SystemExit):
            parse_train([name, "--help"])
        box = capsys.readouterr().out.split("--env STR")[1].split("output options")[0]
        words = (word for word in box.split() if not set(word) <= set("|│╭╮╰╯─-+"))
        shown[name] = set(re.split(" (?=--)", " ".join(words)))
    assert len(shown["fedavg"]) > 50 and shown["fedavg"] < shown["gentle"]
    assert repr(config.config_class("gentle")()).startswith("GentleConfig(env=")


def test_policies_and_aggregators_of_guests_are_used(fresh):
    registry.register("policy", lambda spec, hidden: gaussian_mlp(spec, hidden=(3, *hidden)), "wider")
    doubled = lambda: mean()._replace(
        update=lambda m, w, s, k: (jax.tree.map(lambda x: 2 * x, mean().update(m, w, s, k)[0]), s)
    )
    registry.register("aggregator", doubled, "doubled")
    shared = {
        "env": "navigation",
        "num_clients": 4,
        "clients_per_round": 2,
        "episodes": 2,
        "hidden": (4,),
        "server": "sgd",
    }
    plain, guest = (assemble.make_run(config.build("fedavg", shared, more)) for more in ({}, {"aggregator": "doubled"}))
    state = assemble.initial_state(plain)
    moved = [jax.jit(run.simulation.round)(state)[0].server.shared for run in (plain, guest)]
    change = [jax.tree.map(np.subtract, after, state.server.shared) for after in moved]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-3, atol=1e-6), *change)
    wide = assemble.make_run(config.build("fedavg", shared, {"policy": "wider"}))
    assert assemble.abstract_state(wide).server.shared["hidden_0"]["kernel"].shape == (2, 3)
