"""FedHPD: ten agents of unlike networks, alone and distilling from each other, beside the published table.

    python -m experiments.fedhpd [--scale laptop] [--out DIR] [--methods NoFed placebo d=5 ...]
    python -m experiments.fedhpd --envs gym/LunarLander-v3 --methods NoFed DPA     # hours

Arms: every agent alone (NoFed); distillation after every d episodes, by the optimiser of the local steps (shared, as
published) or by one of its own; a placebo, whose shared optimiser takes the same steps with a gradient of zero and
whose agents send nothing; and DPA-FedRL, published and corrected. All arms of a seed start from the same networks and
are compared seed by seed. The public states are those that `fedjax-rl public-states` makes: on CartPole with its
defaults, as committed; elsewhere they are made first.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Members, Scale, curve, finish, footer, main, pyplot, run
from fedjax_rl import config, statistics
from fedjax_rl.cli.parse import PublicStatesOptions
from fedjax_rl.config import presets

CARTPOLE, LUNAR = "gymnax/CartPole-v1", "gym/LunarLander-v3"
PRESET = {CARTPOLE: "fedhpd-cartpole", LUNAR: "fedhpd-lunarlander"}
STATES = "docs/results/fedhpd/gymnax_CartPole-v1-73986a01.npy"  # from the clone, where an experiment is begun
# of the agent that visits public states (Kong et al., AAMAS 2025)
AGENT: dict[str, dict[str, Any]] = {
    CARTPOLE: {},
    LUNAR: {"hidden": (256, 256), "activation": "tanh", "local_lr": 0.0004, "states": 10_000, "components": 3}
    | {"clusters": 10, "episodes": 4000, "seed": 20},
}
METHODS = ("NoFed", "placebo", "DPA", "d=5", "d=10", "d=20", "d=40", "d=80", "d=2")  # what costs most comes last
EPISODES = {"tiny": {CARTPOLE: 80, LUNAR: 80}} | {scale: {CARTPOLE: 2000, LUNAR: 3000} for scale in ("laptop", "paper")}
SEEDS = {"tiny": 2, "laptop": 5, "paper": 20}
RETURN = "train/return/adapt_0"
LAST = 160  # episodes, which every d divides
SMOOTH = 50  # episodes that a point of the figure is the mean of
# Kong et al., AAMAS 2025, from the authors' published curves: mean and deviation over five seeds of the last 100
# episodes, of the last 160, and of all (AUC).
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float] | None, ...]]] = {
    CARTPOLE: {
        "NoFed": ((369.6, 42.2), (368.3, 43.4), (256.9, 12.5)),
        "d=2 shared": ((477.3, 17.1), (475.4, 16.0), (372.8, 11.4)),
        "d=5 shared": ((455.5, 20.3), (449.5, 16.7), (343.2, 16.0)),
        "d=20 shared": ((409.5, 22.2), (407.7, 19.2), (285.1, 15.6)),
        "d=80 shared": ((383.1, 21.5), (381.1, 21.2), (268.2, 19.3)),
    },
    LUNAR: {
        "NoFed": ((108.3, 9.7), None, (36.6, 5.7)),
        "d=2 shared": ((179.4, 8.1), None, (119.4, 5.0)),
        "d=5 shared": ((159.7, 12.7), None, (90.3, 10.2)),
        "d=20 shared": ((125.9, 7.1), None, (60.0, 4.2)),
        "d=80 shared": ((112.7, 7.7), None, (43.6, 4.2)),
    },
}


def arms(episodes: int, states: str, methods: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What each arm changes of the preset, by label."""
    every = {
        "NoFed": {"distill": "none"},
        "placebo d=5": {"distill": "placebo", "distill_optimizer": "shared"},
        **{f"DPA {variant}": {"algorithm": "dpa_fedrl", "variant": variant} for variant in ("published", "corrected")},
    }
    found = {
        label: {"local_steps": 1 if label.startswith("DPA") else 5, **values}
        for label, values in every.items()
        if label.split()[0] in methods
    }
    for method in methods:
        for optimizer in ("shared", "own") if method.startswith("d=") else ():
            d = int(method.removeprefix("d="))
            found[f"{method} {optimizer}"] = {
                "distill_optimizer": optimizer,
                "public_states": states,
                "local_steps": d,
            }
    return {label: {**values, "rounds": episodes // values["local_steps"]} for label, values in found.items()}


def members(scale: Scale, env: str, values: Mapping[str, Any], label: str) -> Members:
    """An arm's runs, one for each seed."""
    values = dict(values)
    algorithm = values.pop("algorithm", "fedhpd")
    made = config.build(algorithm, presets.preset(PRESET[env], algorithm), values)
    name = label.replace(" ", "-")
    return {f"{name}/seed{seed}": replace(made, seed=seed) for seed in range(SEEDS[scale.name])}


def public_states(scale: Scale, env: str, out: Path) -> str:
    """The file of the public states: on CartPole the committed one, which the command made; else a new one."""
    from fedjax_rl.runs import visited

    if scale.name != "tiny" and env == CARTPOLE:
        return STATES
    directory = out / "public-states"
    if not (made := sorted(directory.glob("*.npy"))):
        tiny = {"episodes": EPISODES[scale.name][env]} if scale.name == "tiny" else {}
        options = PublicStatesOptions(**{"env": env, **AGENT[env], **tiny})
        seen = visited.visited(options.agent(), options.snapshots, options.rollouts)
        chosen = visited.spread(seen, options.states, options.components, options.clusters, options.seed)
        made = [visited.write(directory, options.agent(), chosen)]
    return str(made[0])


def episodes(out: Path, some: Members) -> np.ndarray:
    """The mean return of the agents in every episode, a value a round repeated over its episodes: [seeds, episodes]."""
    rows = []
    for name, c in some.items():
        by_round = curve(out, name, RETURN)
        rows.append(np.repeat([by_round[r] for r in range(1, c.rounds + 1)], c.local_steps))
    return np.array(rows)


def spread(values: np.ndarray) -> str:
    """'mean ± deviation over seeds', as published."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def apart(values: np.ndarray, published: tuple[float, float]) -> str:
    """How far the mean is from the published one of five seeds, in joint standard errors."""
    mean, deviation = published
    error = math.sqrt(values.var(ddof=1) / len(values) + deviation**2 / 5)
    return f"{mean:.1f} ± {deviation:.1f} ({(values.mean() - mean) / error:+.1f} s.e.)"


def share(part: np.ndarray, whole: np.ndarray) -> str:
    """mean(part) / mean(whole) of paired gains [seeds], with its 95 % interval.

    The interval holds every r that a t-test of mean(part - r whole) = 0 does not reject (Fieller, "Some Problems in
    Interval Estimation", JRSS B, 1954). With s the covariance of the two means and t the t-quantile these are the r
    between the roots of

        (mean(whole)^2 - t^2 s_ww) r^2 - 2 (mean(part) mean(whole) - t^2 s_pw) r + mean(part)^2 - t^2 s_pp

    A whole that is not told apart from 0 has no bounded interval.
    """
    p, w = part.mean(), whole.mean()
    found = f"{p / w:.0%}"
    s = statistics.t_quantile(0.975, len(part) - 1) ** 2 * np.cov(part, whole) / len(part)
    a, b, c = w**2 - s[1, 1], p * w - s[0, 1], p**2 - s[0, 0]
    if a <= 0:
        return f"{found} (no bounded interval)"
    half = math.sqrt(max(b**2 - a * c, 0.0))
    return f"{found} ({(b - half) / a:.0%} to {(b + half) / a:.0%})"


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = METHODS) -> None:
    """Every arm is one program of all seeds; then the table and the figure."""
    if len(envs) > 1:
        raise config.ConfigError(f"one environment at a time, in a directory of its own: --envs {envs[0]}")
    [env] = envs
    states = public_states(scale, env, out) if any(method.startswith("d=") for method in methods) else ""
    chosen = arms(EPISODES[scale.name][env], states, methods)
    every = {label: members(scale, env, values, label) for label, values in chosen.items()}
    run(scale, {name: c for some in every.values() for name, c in some.items()}, out)
    in_order = sorted(every, key=lambda label: (int(label.split()[0][2:]) if label.startswith("d=") else 0, label))
    returns = {label: episodes(out, every[label]) for label in in_order}
    note = footer(scale, {name: c for some in every.values() for name, c in some.items()}, out)
    (out / "fedhpd.md").write_text("\n".join(table(returns, PUBLISHED[env], note)) + "\n")
    scores = {label: {"last": last(r).tolist(), "auc": r.mean(axis=1).tolist()} for label, r in returns.items()}
    (out / "fedhpd.json").write_text(json.dumps(scores, indent=1) + "\n")
    draw(returns, out / "fedhpd.png", f"{env.split('/')[1]}, ten unlike agents", note)
    print((out / "fedhpd.md").read_text())


def last(returns: np.ndarray, count: int = LAST) -> np.ndarray:
    """The mean of the last episodes [seeds]."""
    return returns[:, -count:].mean(axis=1)


def table(returns: Mapping[str, np.ndarray], published: Mapping[str, Any], note: str) -> list[str]:
    """The lines of the page: columns beside the published ones, paired gains, the placebo's share."""
    n = len(next(iter(returns.values())))
    alone = returns.get("NoFed", np.full((n, 1), np.nan))
    head = ["", "last 100", "published", f"last {LAST}", "published", "AUC", "published", "AUC over NoFed, paired"]
    lines = ["# fedhpd", "", note, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, r in returns.items():
        row = [label]
        d = int(label.split()[0].removeprefix("d=")) if label.startswith("d=") else 1
        for i, values in enumerate((last(r, 100) if 100 % d == 0 else None, last(r), r.mean(axis=1))):
            given = published.get(label, (None,) * 3)[i]
            row += ["-", "-"] if values is None else [spread(values), apart(values, given) if given else "-"]
        gain = r.mean(axis=1) - alone.mean(axis=1)
        mean, half = statistics.mean_ci95(gain.tolist())
        lines.append("| " + " | ".join([*row, f"{mean:+.1f} ± {half:.1f}" if label != "NoFed" else "-"]) + " |")
    gains = {label: (last(r) - last(alone), r.mean(axis=1) - alone.mean(axis=1)) for label, r in returns.items()}
    lines += ["", f"± in columns: the deviation over {n} seeds, as published; in the last column: a 95 % t-interval."]
    if not {"NoFed", "placebo d=5", "d=5 shared"} <= returns.keys():
        return lines
    for name, i in (("AUC", 1), (f"mean of the last {LAST} episodes", 0)):
        of = share(gains["placebo d=5"][i], gains["d=5 shared"][i])
        lines.append(f"The placebo's share of the gain of d=5 shared in the {name}: {of}.")
    return lines


def draw(returns: Mapping[str, np.ndarray], path: Path, title: str, note: str) -> None:
    """Mean return of the ten agents over their episodes, SMOOTH at a time, with a band over seeds."""
    figure, axes = pyplot().subplots(figsize=(7, 4.2))
    for label in (
        "NoFed",
        "DPA published",
        "DPA corrected",
        "placebo d=5",
        "d=5 shared",
        "d=5 own",
        "d=2 shared",
        "d=2 own",
    ):
        if label not in returns:
            continue
        smooth = np.stack([np.convolve(row, np.ones(SMOOTH) / SMOOTH, mode="valid") for row in returns[label]])
        stats = np.array([statistics.mean_ci95(column) for column in smooth.T.tolist()], float)
        x = SMOOTH + np.arange(len(stats))
        [line] = axes.plot(x, stats[:, 0], label=label, lw=1.5)
        axes.plot(x, smooth.T, color=line.get_color(), lw=0.4, alpha=0.5)
        if len(smooth) > 2:
            axes.fill_between(x, *(stats[:, :1] + stats[:, 1:] * [-1, 1]).T, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="episodes of each agent", ylabel=f"return of an episode, {SMOOTH}-episode means", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    finish(figure, path, note)


if __name__ == "__main__":
    main(__doc__, "fedhpd", experiment, envs=tuple(PRESET), default_envs=(CARTPOLE,), methods=METHODS)
