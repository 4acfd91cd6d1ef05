"""Configurations: ranges, layers, names, and the file that reproduces a run."""

import random
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fedjax_rl import config
from fedjax_rl.cli import parse as arguments
from fedjax_rl.config import CONFIGS, ConfigError, guests, presets, schedules
from fedjax_rl.config import sources as layers
from fedjax_rl.config.algorithms import FedProxConfig, FmrlConfig
from fedjax_rl.config.options import SERVER_NAMES, ChangeConfig
from fedjax_rl.federation import clock, staleness, times
from fedjax_rl.federation import server_optimizers as optimizers
from fedjax_rl.host import registry
from fedjax_rl.rl import policies, surrogates

NAN, INF = float("nan"), float("inf")
INVALID = [
    ("env", "half_chetah/direction"),
    ("env", ""),
    ("env", 3),
    ("backend", "cuda"),
    ("observation", "full"),
    ("hidden", ()),
    ("hidden", (64, 0)),
    ("hidden", (5000,)),
    ("hidden", (64.0,)),
    ("hidden", 64),
    ("activation", "gelu"),
    ("seed", -1),
    ("seed", 2**31),
    ("num_clients", 0),
    ("num_clients", 2.0),
    ("num_clients", True),
    ("num_clients", "200"),
    ("clients_per_round", 0),
    ("clients_per_round", 201),
    ("rounds", 0),
    ("rounds", -3),
    ("episodes", 0),
    ("local_steps", 0),
    ("local_lr", 0.0),
    ("local_lr", NAN),
    ("local_lr", 101),
    ("inner_lr", -0.1),
    ("inner_lr", INF),
    ("server", "adamw"),
    ("server_lr", 0),
    ("server_lr", -INF),
    ("server_lr", "fast"),
    ("discount", 0.0),
    ("discount", 1.01),
    ("gae_lambda", -0.1),
    ("gae_lambda", 1.5),
    ("clip", 0.0),
    ("surrogate", "ppo"),
    ("client_batch", -1),
    ("client_batch", 201),
    ("eval_every", -1),
    ("eval_clients", 201),
    ("adapt_steps", 101),
    ("new_clients", -1),
    ("save_every", 0),
    ("order", "third"),
]


@pytest.mark.parametrize(("key", "value"), INVALID)
def test_illegal_values_are_named_in_one_line(key, value):
    with pytest.raises(ConfigError) as caught:
        FmrlConfig(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"{key} = {value!r}: must be ")
    assert "\n" not in message


def test_an_algorithms_own_field_has_a_range_too():
    with pytest.raises(ConfigError, match=r"mu = -1\.0"):
        FedProxConfig(mu=-1.0)


def test_every_preset_of_every_algorithm_is_legal():
    for algorithm in CONFIGS:
        for name in presets.PRESETS:
            assert config.build(algorithm, presets.preset(name, algorithm)).num_clients > 0


@pytest.mark.parametrize("algorithm", [name for name, cls in CONFIGS.items() if cls.beyond_presets])
def test_no_preset_touches_what_an_algorithm_has_values_of_its_own_for(algorithm):
    """A rate of the server goes with its half-life: a mean model that is taken by less and less stops to learn."""
    own = set(CONFIGS[algorithm].beyond_presets)
    for name in presets.PRESETS:
        for env in (None, "ant/direction", "half_cheetah/direction"):
            assert not own & presets.preset(name, algorithm, env).keys()
    if "server_lr" in own:
        found = presets.preset("efficient", algorithm)
        assert config.build(algorithm, found).server_half_life == 0


def test_reptiles_clip_grows_with_its_local_rate():
    """Its change is an adaptation's, 0.09 to begin with on half-cheetah: the clip of the others would cut all of it."""
    ours, others = presets.preset("laptop", "reptile"), presets.preset("laptop", "fedavg")
    assert ours["local_lr"] == pytest.approx(ours["inner_lr"])
    for key in ("local_lr", "max_change_norm"):
        assert ours[key] == pytest.approx(100 * others[key])
    assert "max_change_norm" not in presets.preset("paper", "reptile")


def test_the_efficient_preset_takes_longer_on_ant_and_its_rate_falls_alike():
    of = lambda *env: presets.preset("efficient", "fmrl", *env)
    assert of() == of("half_cheetah/direction") == of("half_cheetah/velocity")
    assert of("ant/velocity") == {
        **of(),
        "rounds": 1000,
        "server_half_life": 480,
        "inner_lr": 0.5,
        "gae_lambda": 0.9,
        "order": "first",
    }
    assert of("ant/velocity")["rounds"] > 2 * 480 and of()["rounds"] > 2 * of()["server_half_life"]
    assert "server_half_life" not in presets.preset("efficient", "independent")
    assert "order" not in presets.preset("efficient", "fedavg", "ant/direction")


def test_on_ant_every_preset_but_the_papers_adapts_faster():
    found = {name: config.build("fmrl", presets.preset(name, "fmrl", "ant/velocity")) for name in presets.PRESETS}
    values = {name: (c.inner_lr, c.gae_lambda) for name, c in found.items()}
    own = ("fedhpd-cartpole", "fedhpd-lunarlander", "fedpg-br-cartpole")  # for environments of their own
    assert values == {name: (0.1, 1.0) if name in ("paper", *own) else (0.5, 0.9) for name in presets.PRESETS}
    reptile = presets.preset("laptop", "reptile", "ant/direction")
    assert reptile["local_lr"] == reptile["inner_lr"] and reptile["max_change_norm"] == pytest.approx(500 * 0.002)


@pytest.mark.parametrize("folder", ["config", "cli"])
def test_no_option_has_its_help_where_it_is_not_read(folder):
    """A comment behind a definition of several lines is passed over, and the help of the option above is shown."""
    for path in (Path(config.__file__).parents[1] / folder).glob("*.py"):
        assert not re.search(r"^ {4}\) +#", path.read_text(), re.MULTILINE), path.name


def test_the_paper_preset_has_the_published_numbers():
    c = config.build("fmrl", presets.preset("paper", "fmrl"))
    assert (c.num_clients, c.clients_per_round, c.rounds, c.local_steps, c.episodes) == (200, 40, 500, 5, 20)
    assert (c.inner_lr, c.local_lr, c.server, c.server_lr, c.order) == (0.1, 0.001, "adam", 0.0005, "first")
    assert presets.preset("paper", "fmrl", "ant/velocity")["server_lr"] == 0.001


def _random_value(item, rng):
    rule = item.metadata["rule"]
    if rule.kind:
        return rng.choice(registry.names(rule.kind))
    if rule.choices:
        return rng.choice(rule.choices)
    if isinstance(item.default, bool):
        return rng.random() < 0.5
    if isinstance(item.default, str):
        return rng.choice(["", "a text"]) if item.name != "kinds" else ""
    if isinstance(item.default, tuple):
        return tuple(rng.randint(1, 4096) for _ in range(rng.randint(1, 4)))
    if isinstance(item.default, int):
        return rng.randint(int(rule.low), min(int(rule.high), 10**6))
    return rng.uniform(rule.low, rule.high) or 0.5


SCHEDULES = [
    {"schedule": "sync"},
    {"schedule": "sync", "wait_for": 1, "speed": "linear", "clients_per_round": 2, "num_clients": 9},
    {"schedule": "async", "num_clients": 12, "clients_per_round": 6, "buffer": 3, "in_flight": 4, "restart": "now"},
    {"schedule": "async", "num_clients": 5, "clients_per_round": 0, "buffer": 7, "restart": "abort", "harmonic": 6},
]


TRUSTED = [
    {"compress": "top_k", "feedback": "ef21", "downlink_bits": 7, "attack": "reward_flip", "aggregator": "norm_clip"},
    {"selection": "stratified", "aggregator": "centered_clip", "nan_dump": 3, "attack": "obs_noise", "byzantine": 0.1},
    {"dp_clip": 0.3, "dp_noise": 1.5, "dp_delta": 1e-12, "dp_where": "local"},
]


LEARNS = {"aggregate": "parameters", "personal": "none", "learn_after": 1}


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_toml_round_trips(algorithm, tmp_path):
    rng, path = random.Random(0), tmp_path / "config.toml"
    names = {item.name for item in fields(CONFIGS[algorithm])}
    clocked = {*schedules.ASYNC, "schedule", "wait_for", "max_time"}
    trusting = {name for name in names if name.startswith(("secagg_", "dp_"))}
    trusting |= {"selection", "aggregator", "byzantine", "attack", "compress", "feedback", "downlink_bits", "nan_dump"}
    for i in range(40):
        free = [item for item in fields(CONFIGS[algorithm]) if item.name not in clocked | trusting]
        values = {item.name: _random_value(item, rng) for item in free}
        values |= {key: value for key, value in TRUSTED[i % len(TRUSTED)].items() if key in names}
        values["clients_per_round"] = max(1, values["clients_per_round"])
        values |= SCHEDULES[0 if CONFIGS[algorithm].refuses_async else i % len(SCHEDULES)]
        if values["schedule"] == "async":
            values = {key: value for key, value in values.items() if not key.startswith("dp_")}
        for small in ("clients_per_round", "eval_clients", "final_clients", "client_batch"):
            values[small] = min(values[small], values["num_clients"])
            if not issubclass(CONFIGS[algorithm], ChangeConfig) and values["critic"] == "local":
                values["critic"] = "linear"
            if CONFIGS[algorithm].refuses_stragglers or values["local_steps"] == 1:
                values["stragglers"] = 0.0
        if CONFIGS[algorithm].refuses_critic:
            values["critic"] = "linear"
        if CONFIGS[algorithm].refuses_loss:
            values["aggregator"] = "mean"
        if CONFIGS[algorithm].learns_values:
            values |= {"critic": "linear", "attack": "none"}
            values |= {"policy": "table"} if algorithm == "q_avg" else LEARNS
        if algorithm == "fedstrategy":
            values |= {"critic": "none", "reduction": "mean", "client_episodes": (1,), "client_steps": ()}
            values |= {"sharing": "map"}
        if algorithm == "fedrep":
            values["policy"] = "mlp"
        if algorithm in ("fedhpd", "dpa_fedrl") and values.get("aggregator") == "centered_clip":
            values["aggregator"] = "geomed"
        if algorithm == "npg_admm":
            values |= {"clients_per_round": values["num_clients"], "dropout": 0.0}
        made = config.build(algorithm, values)
        path.write_text(layers.to_toml(made))
        assert layers.load(path) == made


WRONG = {
    "buffer = 3: only with schedule = 'async'": {"buffer": 3},
    "fair = True: only with schedule = 'async'": {"fair": True},
    "wait_for = 41: must be at most clients_per_round = 40": {"wait_for": 41, "speed": "linear"},
    "wait_for = 5: all are equally fast": {"wait_for": 5},
    "wait_for = 5: only with schedule = 'sync'": {"wait_for": 5, "schedule": "async"},
    "max_time = 5.0: no time is kept": {"max_time": 5.0},
    "in_flight = 201: must be at most num_clients = 200": {"in_flight": 201, "schedule": "async"},
    "buffer = 7: must divide clients_per_round = 40": {"buffer": 7, "schedule": "async"},
    "buffer = 40: with restart = 'update' at most in_flight = 8": {
        "in_flight": 8,
        "restart": "update",
        "schedule": "async",
    },
    "clients_per_round = 40: with restart = 'abort'": {"buffer": 20, "restart": "abort", "schedule": "async"},
    "harmonic = 9: only with restart = 'abort'": {"harmonic": 9, "schedule": "async"},
    "fair: not with restart = 'abort'": {"fair": True, "buffer": 40, "restart": "abort", "schedule": "async"},
    "harmonic = 9: every client must arrive": {"harmonic": 9, "restart": "abort", "schedule": "async"},
    "speed = 'liner': must be one of": {"speed": "liner"},
    "speed_ratio = 0.5: must be": {"speed_ratio": 0.5},
}


@pytest.mark.parametrize("message", WRONG)
def test_schedules_that_do_not_fit_together_are_refused_in_one_line(message):
    with pytest.raises(ConfigError) as caught:
        FmrlConfig(**WRONG[message])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


LOSSY = [  # what makes a message count for less than its sender thinks
    {"secagg_bits": 20, "secagg_range": 1.0},
    *[{"schedule": "async", "restart": "update", **lossy} for lossy in ({"staleness": "polynomial"}, {"fair": True})],
]


@pytest.mark.parametrize("values", LOSSY)
def test_where_the_server_keeps_the_mean_of_what_clients_keep_no_message_counts_for_less(values):
    keeps = [name for name, of in CONFIGS.items() if of.refuses_loss]
    assert keeps == ["scaffold", "lapg"]
    values = {"num_clients": 8, "clients_per_round": 4, **values}
    for name in keeps:
        with pytest.raises(ConfigError, match=f"not for {name}: its server keeps the mean of .*, (and|so)") as caught:
            config.build(name, values)
        assert "\n" not in str(caught.value)
    config.build("ditto", values)


def test_a_critic_that_a_fisher_matrix_does_not_know_is_refused():
    for name in ("npg", "npg_admm"):
        for critic in ("federated", "local"):
            with pytest.raises(ConfigError, match=f"critic = '{critic}': not for {name}, whose Fisher matrix knows"):
                config.build(name, {"critic": critic, "num_clients": 4, "clients_per_round": 4})


def test_a_running_mean_that_takes_nothing_new_is_refused():
    with pytest.raises(ConfigError, match=r"client_momentum = 1\.0: must be a number, 0 to 0\.9999"):
        FmrlConfig(client_momentum=1.0)


def test_clients_of_unlike_networks_and_those_who_answer_each_other_wait_for_all():
    with pytest.raises(ConfigError, match="schedule = 'async': not for fedhpd: all its clients answer"):
        config.build("fedhpd", {"schedule": "async"})
    alike = {"kinds": "4x8:tanh", "num_clients": 4, "clients_per_round": 4}
    with pytest.raises(ConfigError, match="kinds: not with schedule = 'async'"):
        config.build("independent", alike | {"schedule": "async"})


def test_later_layers_win(tmp_path, monkeypatch):
    path = tmp_path / "c.toml"
    path.write_text("rounds = 11\nepisodes = 12\nlocal_steps = 13\n")
    monkeypatch.setenv("FEDJAX_RL_EPISODES", "22")
    monkeypatch.setenv("FEDJAX_RL_LOCAL_STEPS", "23")
    monkeypatch.setenv("FEDJAX_RL_HIDDEN", "8,9")
    c, _ = arguments.parse_train(["--config", str(path), "--local-steps", "33", "--preset", "tiny"])
    assert (c.num_clients, c.rounds, c.episodes, c.local_steps, c.hidden) == (8, 11, 22, 33, (8, 9))


def test_a_file_may_choose_the_algorithm_and_the_command_line_may_not_be_overruled(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('algorithm = "fedrep"\nhead_steps = 3\n')
    assert arguments.parse_train(["--config", str(path)])[0].head_steps == 3
    with pytest.raises(ConfigError, match="'head_steps' for fedavg \\(it is an option of fedrep\\)"):
        arguments.parse_train(["fedavg", "--config", str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sever_lr = 1.0", "unknown key 'sever_lr' for fmrl (did you mean server_lr?)"),
        ("schema = 99", "reads schema 1"),
        ("rounds = ", "is not TOML"),
        ('algorithm = "fmlr"', "unknown algorithm 'fmlr' (did you mean fmrl?)"),
    ],
)
def test_bad_files_are_refused(text, message, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.build("fmrl", layers.read_toml(path)[1])
    assert message in str(caught.value)


def test_bad_variables_are_refused():
    with pytest.raises(ConfigError, match=r"FEDJAX_RL_ROUNDZ.*did you mean FEDJAX_RL_ROUNDS"):
        layers.environment_layer("fmrl", {"FEDJAX_RL_ROUNDZ": "3"})
    with pytest.raises(ConfigError, match="FEDJAX_RL_ROUNDS = 'x': must be int"):
        layers.environment_layer("fmrl", {"FEDJAX_RL_ROUNDS": "x"})


def test_numbers_and_texts_of_numpy_are_pythons():
    given = {"server_lr": 0.25, "rounds": 3, "fair": False, "activation": "relu", "hidden": (4, 5), "wait_for": 0}
    numpy = {key: np.array([value])[0] for key, value in given.items() if key != "hidden"}
    made = FmrlConfig(**numpy, hidden=(np.int64(4), np.int32(5)))
    assert made == FmrlConfig(**given) == FmrlConfig(**{**given, "hidden": np.array([4, 5])})
    assert layers.to_toml(made) == layers.to_toml(FmrlConfig(**given))
    for key, value in (("rounds", np.float32(2)), ("rounds", np.bool_(1)), ("server_lr", np.array([0.1]))):
        with pytest.raises(ConfigError, match=f"{key} = .*: must be a"):
            FmrlConfig(**{key: value})


def test_the_light_lists_of_names_are_the_registries():
    typed = {item.name for cls in (arguments.TrainOptions, arguments.SweepOptions) for item in fields(cls)} | {"help"}
    assert typed == guests.TYPED
    assert set(CONFIGS) == set(registry.OWN["algorithm"])
    assert set(SERVER_NAMES) == set(optimizers.SERVER_OPTIMIZERS)
    rules = {item.name: item.metadata["rule"] for item in fields(config.Config)}
    assert set(rules["surrogate"].choices) == set(surrogates.SURROGATES)
    assert set(rules["speed"].choices) == set(times.SPEEDS)
    assert set(rules["delay_noise"].choices) == set(times.NOISES)
    assert set(rules["staleness"].choices) == set(staleness.STALENESS)
    assert set(rules["restart"].choices) == set(clock.RESTARTS)
    assert set(rules["activation"].choices) == set(policies.ACTIVATIONS)
