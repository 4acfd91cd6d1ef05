"""Ant at a speed: what keeps FMRL below the published return, one change at a time.

python -m experiments.ant_velocity --scale laptop [--out DIR] [--methods LINE ...]

On the two seeds that other results are not reported for. Base: cohorts of four, and a server rate that falls to a
quarter. All lines take as many environment steps (at the laptop scale 4 M). Where their policies can act under the
published rules, they are evaluated under these too. Gym's physics, by C MuJoCo, takes hours: it is run where
it is named.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import (
    HORIZON,
    SELECTED,
    TUNING_SEEDS,
    Members,
    Scale,
    curves,
    finals,
    footer,
    main,
    measured,
    slug,
)
from fedjax_rl import config
from fedjax_rl.config import presets
from fedjax_rl.envs import Env, ant, mujoco_env
from fedjax_rl.envs.physics import Model
from fedjax_rl.runs import assemble, checkpoint, rundir, scoring

ENV, HERE = "ant/velocity", "experiments.ant_velocity"
EDGES = (0.0, 1.0, 2.0, 3.0)  # m/s, classes of the clients' speeds
GYM = {"Euler": "RK4", 'timestep="0.005"': 'timestep="0.01"', 'cone="elliptic"': 'cone="pyramidal"'}


def no_end(*, backend: str = "auto", observation: str = "maml") -> Env:
    """A fall does not end the episode."""
    return _with(lambda state: {"done": ~jnp.isfinite(state.obs).all()}, backend, observation)


def paid(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Each step earns 2 more, so that none costs more than to fall."""
    return _with(lambda state: {"reward": state.reward + 2.0}, backend, observation)


def full_range(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Actions are not divided by ten."""
    env = ant.velocity(backend=backend, observation=observation)
    return env._replace(step=lambda state, action, task: env.step(state, mujoco_env.ACTION_SCALE * action, task))


def twice_as_long(*, backend: str = "auto", observation: str = "maml") -> Env:
    """Episodes of 200 steps."""
    env = ant.velocity(backend=backend, observation=observation)
    return env._replace(spec=env.spec._replace(horizon=200))


def gym(*, observation: str = "maml") -> Env:
    """Gym's integrator, time step and friction cones, by C MuJoCo."""
    text = mujoco_env.load_asset("ant.xml").partition("-->")[2]
    for ours, theirs in GYM.items():
        text = text.replace(ours, theirs)
    speeds, model = mujoco_env.speeds(3.0), Model(text, frame_skip=5)
    return ant.make_ant(ENV, ant.velocity_reward, speeds, "native", observation, model)


def _with(changed: Callable[[Any], dict], backend: str, observation: str) -> Env:
    """The environment whose states are `changed` after each step."""
    env = ant.velocity(backend=backend, observation=observation)

    def step(state, action, task):
        after = env.step(state, action, task)
        return after._replace(**changed(after))

    return env._replace(step=step)


RULES = {rule.__name__: f"{HERE}:{rule.__name__}" for rule in (no_end, paid, full_range, twice_as_long, gym)}
HORIZON |= {name: 100 for name in RULES.values()} | {RULES["twice_as_long"]: 200}
ELSEWHERE = (RULES["full_range"], RULES["gym"])  # whose policies act in another body
BASE = {
    "clients_per_round": 4,
    "inner_lr": 0.5,
    "gae_lambda": 0.9,
    "order": "second",
    "selection": "stratified",
    "server_lr": 0.0015,
    "max_change_norm": 0.002,
    "observation": "compact",
}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "inner rate .1": {"inner_lr": 0.1},
    "lambda 1": {"gae_lambda": 1.0},
    "server rate .004": {"server_lr": 0.004},
    "first order": {"order": "first"},
    "cohorts of 8": {"clients_per_round": 8},
    "torso's position is seen": {"observation": "maml"},
    "a fall ends nothing": {"env": RULES["no_end"]},
    "2 more for each step": {"env": RULES["paid"]},
    "episodes of 200 steps": {"env": RULES["twice_as_long"]},
    "actions not divided by ten": {"env": RULES["full_range"]},
    "Gym's physics": {"env": RULES["gym"]},
}
DEFAULT = tuple(label for label in CHANGES if label != "Gym's physics")


def lines(scale: Scale, labels: tuple[str, ...] = tuple(CHANGES)) -> dict[str, Members]:
    """Each line's members, one for each seed, with as many environment steps in all."""
    found = {}
    for label in labels:
        values: dict[str, Any] = {"env": ENV, "new_clients": 0, "adapt_steps": 1, **BASE, **CHANGES[label]}
        share = values["clients_per_round"] * HORIZON.get(values["env"], 100) / 400
        values["rounds"] = int(5 * scale.rounds["ant"] / share)
        values["server_half_life"] = values["rounds"] / 2
        layers = (presets.preset(scale.preset, "fmrl", ENV), values)
        found[label] = {
            f"{slug(label)}/seed{seed}": config.build("fmrl", *layers, {"seed": seed}) for seed in TUNING_SEEDS
        }
    return found


def under_the_rules(path: Path) -> dict[str, Any]:
    """A run's speeds [N], and its clients' returns [N, 2] before adaptation and after one step, in ant/velocity."""
    c = rundir.open_run(path)
    made = assemble.make_run(c if c.env in ELSEWHERE else replace(c, env=ENV))
    state = checkpoint.restore(path / rundir.CHECKPOINTS, assemble.abstract_state(made), print).state
    returns = scoring.old_clients(scoring.make_evaluation(made), state, c.num_clients)
    return {"speeds": np.ravel(state.tasks), "returns": returns}


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = DEFAULT) -> None:
    """Run what is missing; draw OUT/ant_velocity.png and write OUT/ant_velocity.md and OUT/ant_velocity.json."""
    scale = scale._replace(seeds=TUNING_SEEDS)
    by_label = lines(scale, methods)
    curves(scale, out, envs, lambda env: by_label, (SELECTED,), "ant_velocity", by_steps=True)
    classes = [f"{low:g} to {high:g} m/s" for low, high in itertools.pairwise(EDGES)]
    head = ["", "before", "1 step", *classes, "1 step, own rules"]
    everyone = {name: c for some in by_label.values() for name, c in some.items()}
    text = ["# ant_velocity", "", footer(scale, everyone, out), "", "| " + " | ".join(head) + " |", "|---" * 7 + "|"]
    scores = {}
    for label, some in by_label.items():
        ends = finals(out, some)
        own = [float(np.mean(ends[name]["eval/returns"], axis=0)[1]) if name in ends else None for name in some]
        rows = [measured(out / name, lambda path=out / name: under_the_rules(path)) for name in some]
        columns = columns_of(rows) | {"own": own}
        scores[label] = columns
        cells = [", ".join("-" if x is None else f"{x:.1f}" for x in column) for column in columns.values()]
        text.append("| " + " | ".join([label, *cells]) + " |")
    (out / "ant_velocity.md").write_text("\n".join([*text, ""]))
    (out / "ant_velocity.json").write_text(json.dumps(scores, indent=1) + "\n")
    print("\n".join(text))


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Means over clients, one for each seed: of all before and after one step, of each class or None."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        speeds, returns = np.asarray(row["speeds"]), np.asarray(row["returns"])
        found.setdefault("before", []).append(float(returns[:, 0].mean()))
        found.setdefault("after", []).append(float(returns[:, 1].mean()))
        for low, high in itertools.pairwise(EDGES):
            inside = (speeds >= low) & (speeds < high)
            mean = float(returns[inside, 1].mean()) if inside.any() else None
            found.setdefault(f"{low:g} to {high:g}", []).append(mean)
    return found


if __name__ == "__main__":
    main(__doc__, "ant_velocity", experiment, methods=tuple(CHANGES), default_methods=DEFAULT, envs=(ENV,))
