"""Do weak clients gain from strategies that others learned? (fedstrategy, with clients of unlike capability)

    python -m experiments.capability [--scale laptop] [--out DIR] [--methods navigation slow cartpole]

Three networks x episodes a batch in 1, 4, 16 x steps in 1, 3: 18 classes of three clients, each client with a model and
a task of its own. Arms: the first strategy, which stays; the best of eight rates, which stays; a map of each client's
own; one learned strategy for all; and the learned map. `slow` is navigation with a smaller rate of the server. A return
is a client's mean over the evaluations of a run. Then the transfer: new clients, some of episodes, steps and a network
that no one had, learn for 30 rounds with what was learned, which stays.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import BANDS, Members, Scale, finish, footer, main, measured, pyplot, run, slug
from fedjax_rl import config, statistics
from fedjax_rl.config import presets
from fedjax_rl.host.numerics import pinned, root_key
from fedjax_rl.runs import assemble, checkpoint, records, rundir

# environment, and the server's rate
PARTS = {
    "navigation": ("navigation", 0.05),
    "slow": ("navigation", 0.01),  # in sixty steps it cannot bring a rate of .03 to the best one
    "cartpole": ("gymnax/CartPole-v1?length=0.1:0.9&horizon=200", 0.05),
}
LEARNED = {"own map": "none", "one strategy": "strategy", "map": "map"}
RATES = (0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
TUNING_SEEDS = (100, 101)
SIZES: dict[str, Any] = {"kinds": "18x16:tanh,18x64-64:tanh,18x32-32-32:tanh", "num_clients": 54, "rounds": 60}
SIZES |= {"episodes": 16, "local_steps": 3, "client_episodes": (1, 4, 16), "client_steps": (1, 3), "eval_every": 10}
# four networks, of which the last is new; episodes 2 and 8 and two steps are new
NEW: dict[str, Any] = {"kinds": "15x16:tanh,15x64-64:tanh,15x32-32-32:tanh,15x48-48:tanh", "num_clients": 60}
NEW |= {"client_episodes": (1, 2, 4, 8, 16), "client_steps": (1, 2, 3), "rounds": 30, "sharing": "fixed"}
TINY: dict[str, Any] = {"kinds": "2x4:tanh,2x3-3:tanh", "num_clients": 4, "rounds": 2, "episodes": 2, "local_steps": 2}
TINY |= {"client_episodes": (1, 2), "client_steps": (1, 2), "eval_every": 1}
TINY_NEW = {**TINY, "client_episodes": (2, 1), "sharing": "fixed"}
EVERY = 5  # rounds of the transfer between two looks


def build(scale: Scale, part: str, seed: int, new: bool = False, **values: Any) -> config.Config:
    """A run of the study; `new`: one of the transfer."""
    tiny = scale.name == "tiny"
    sizes = {**(TINY if tiny else SIZES), **((TINY_NEW if tiny else NEW) if new else {})}
    sizes["clients_per_round"] = sizes["num_clients"]
    common = {"env": PARTS[part][0], "new_clients": 0, "adapt_steps": 0, "save_every": 20}
    preset = presets.preset("laptop", "fedstrategy", PARTS[part][0])
    return config.build("fedstrategy", preset, common, sizes, {"seed": seed, **values})


def arm(scale: Scale, part: str, label: str, **values: Any) -> Members:
    """A line's members, one for each seed."""
    seeds = range(2 if scale.name == "tiny" else 10)
    return {f"{part}/{slug(label)}/seed{s}": build(scale, part, s, **values) for s in seeds}


def returns(out: Path, name: str) -> np.ndarray:
    """Mean over the evaluations of each client's return: [N]."""
    rows = {row["round"]: row["eval/returns"] for row in records.read(out / name / rundir.EVAL).rows}
    return np.mean([np.asarray(of)[:, 0] for of in rows.values()], axis=0)


def best_rate(scale: Scale, part: str, out: Path) -> float:
    """The rate of RATES under which clients learn most, over two seeds that are not reported."""
    some = {
        rate: {
            f"{part}/tuning/{rate}/seed{s}": build(scale, part, s, sharing="fixed", inner_lr=rate) for s in TUNING_SEEDS
        }
        for rate in RATES
    }
    run(scale, {name: c for members in some.values() for name, c in members.items()}, out)
    return max(RATES, key=lambda rate: np.mean([returns(out, name).mean() for name in some[rate]]))


def classes(c: config.Config) -> np.ndarray:
    """Episodes of every client's batch [N], which make its class."""
    assert hasattr(c, "client_episodes")
    return np.resize(c.client_episodes, c.num_clients)


def learned(out: Path, name: str, c: config.Config) -> jax.Array:
    """The map with which a run ended."""
    made = assemble.make_run(c)
    like = assemble.abstract_state(made)
    return checkpoint.restore(out / name / rundir.CHECKPOINTS, like, print).state.server.shared


@pinned()
def transfer(scale: Scale, part: str, out: Path, arms: Mapping[str, Members]) -> dict[str, np.ndarray]:
    """Arm -> [seeds, N]: mean over the looks of each new client's return, while it learns with what the arm learned."""
    made = assemble.make_run(build(scale, part, 0, new=True))
    looks, step = max(1, made.config.rounds // EVERY), min(EVERY, made.config.rounds)

    @jax.jit
    def learn(seed: jax.Array, strategy: jax.Array) -> jax.Array:
        state = made.simulation.init(root_key(seed))
        state = state._replace(server=state.server._replace(shared=strategy))

        def look(state, number):
            state, _ = jax.lax.scan(lambda s, _: (made.simulation.round(s)[0], None), state, length=step)
            keys = jax.random.split(jax.random.fold_in(state.key, 1000 + number), made.config.num_clients)
            return state, jax.vmap(made.problem.sample)(state.clients["params"], state.tasks, keys)[1].returned

        return jax.lax.scan(look, state, jnp.arange(looks))[1].mean(axis=0)

    def of(name: str, c: config.Config) -> list[float]:
        def measure():
            strategy = learned(out, name, c)
            whole = jnp.zeros((len(strategy), 4)).at[:, : strategy.shape[1]].set(strategy)
            return {"transfer": learn(jnp.uint32(5000 + c.seed), whole)}

        return measured(out / name, measure)["transfer"]

    return {label: np.array([of(name, c) for name, c in members.items()]) for label, members in arms.items()}


def gains(scores: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Of the map over each other arm, among the chosen clients: mean, low and high of the 95 % t-interval of the paired
    differences over seeds."""
    found = {}
    for label, rows in scores.items():
        if label != "map":
            mean, half = statistics.mean_ci95((scores["map"] - rows)[:, chosen].mean(axis=1).tolist())
            found[label] = (mean, mean - half, mean + half)
    return found


def table(scores: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]) -> list[str]:
    """Groups of clients by arms: the mean return; then the gain of the map over each arm, in pairs of seeds."""
    lines = ["| | " + " | ".join(scores) + " |", "|---" * (len(scores) + 1) + "|"]
    for group, chosen in groups.items():
        lines.append(f"| {group} | " + " | ".join(f"{rows[:, chosen].mean():.1f}" for rows in scores.values()) + " |")
    lines += ["", "The map's gain over each, with a 95 % t-interval over paired seeds:", ""]
    others = [label for label in scores if label != "map"]
    lines += ["| | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
    for group, chosen in groups.items():
        texts = [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in gains(scores, chosen).values()]
        lines.append(f"| {group} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def groups_of(c: config.Config, known: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All clients; those of each number of episodes; with new numbers among them, those that no one trained with."""
    episodes = classes(c)
    made = {"all": np.ones(len(episodes), bool)}
    made |= {f"E = {e}": episodes == e for e in sorted(set(episodes.tolist()))}
    if set(episodes.tolist()) - set(known):
        made["an E of no one"] = ~np.isin(episodes, known)
        made["a network of no one"] = np.arange(len(episodes)) >= len(episodes) - len(episodes) // 4
    return made


def draw(out: Path, part: str, arms: Mapping[str, Members], note: str) -> None:
    """Returns by round for each number of episodes: a line for each arm."""
    first = next(iter(next(iter(arms.values())).values()))
    groups = {name: chosen for name, chosen in groups_of(first, ()).items() if name.startswith("E = ")}
    figure, axes = pyplot().subplots(1, len(groups), figsize=(4 * len(groups), 3.6), sharey=True, squeeze=False)
    for ax, (group, chosen) in zip(axes[0], groups.items(), strict=True):
        for label, members in arms.items():
            seeds = []
            for name in members:
                rows = {row["round"]: row["eval/returns"] for row in records.read(out / name / rundir.EVAL).rows}
                seeds.append([np.asarray(of)[chosen, 0].mean() for of in rows.values()])
            mean = np.array([statistics.mean_ci95(column) for column in np.array(seeds).T], float)
            [line] = ax.plot(list(rows), mean[:, 0], label=label)
            low, high = mean[:, 0] - mean[:, 1], mean[:, 0] + mean[:, 1]
            ax.fill_between(list(rows), low, high, alpha=0.15, color=line.get_color())
        ax.set_title(f"clients with {group}", fontsize=9)
        ax.set_xlabel("round")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("return of an episode")
    axes[0][-1].legend(frameon=False, fontsize=8)
    finish(figure, out / f"{part}.png", note, BANDS)


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = tuple(PARTS)) -> None:
    """Each part: its runs, its tables and figure."""
    del envs
    for part in methods:
        rate = best_rate(scale, part, out)
        arms = {"first strategy": arm(scale, part, "first strategy", sharing="fixed")}
        arms[f"rate {rate:g}"] = arm(scale, part, f"rate {rate:g}", sharing="fixed", inner_lr=rate)
        for label, sharing in LEARNED.items():
            arms[label] = arm(scale, part, label, sharing=sharing, server_lr=PARTS[part][1])
        everyone = {name: c for members in arms.values() for name, c in members.items()}
        run(scale, everyone, out)
        scores = {label: np.array([returns(out, name) for name in members]) for label, members in arms.items()}
        first = next(iter(everyone.values()))
        known = first.client_episodes  # type: ignore[attr-defined]
        later = transfer(scale, part, out, {label: some for label, some in arms.items() if label != "own map"})
        note = footer(scale, everyone, out)
        text = [f"# capability: {part}", "", note, "", "Mean return over the run:", ""]
        text += [*table(scores, groups_of(first, known)), "New clients, with what was learned:", ""]
        text += table(later, groups_of(build(scale, part, 0, new=True), known))
        (out / f"{part}.md").write_text("\n".join(text))
        both = {"runs": scores, "transfer": later}
        kept = {name: {label: rows.round(3).tolist() for label, rows in of.items()} for name, of in both.items()}
        (out / f"{part}.json").write_text(json.dumps(kept) + "\n")
        draw(out, part, arms, note)
        print("\n".join(text))


if __name__ == "__main__":
    main(__doc__, "capability", experiment, methods=tuple(PARTS), envs=(), has_paper=False)
