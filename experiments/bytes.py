"""What a message may lose: returns against the bytes that clients send (FMRL).

    python -m experiments.bytes [--scale laptop] [--out DIR] [--methods navigation half_cheetah]

Every way to make messages shorter, with and without a memory of what was not sent, on navigation; five of them on
half-cheetah. The table has the bytes of one message, the return after one step at the end, and the bytes that all
clients together had sent when the return of training came within 10 % of what full messages reach.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Members, Scale, curve, finals, finish, footer, main, over_all, pyplot, run, slug
from fedjax_rl import config, statistics
from fedjax_rl.config import presets

WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "top_k 10 %": {"compress": "top_k", "compress_ratio": 0.1},
    "top_k 1 %": {"compress": "top_k", "compress_ratio": 0.01},
    "top_k .1 %": {"compress": "top_k", "compress_ratio": 0.001},
    "top_k 1 %, no memory": {"compress": "top_k", "compress_ratio": 0.01, "feedback": "none"},
    "top_k 1 %, EF21": {"compress": "top_k", "compress_ratio": 0.01, "feedback": "ef21"},
    "random_k 10 %": {"compress": "random_k", "compress_ratio": 0.1},
    "random_k 10 %, memory": {"compress": "random_k", "compress_ratio": 0.1, "feedback": "classic"},
    "8 bits": {"compress": "quantise"},
    "4 bits": {"compress": "quantise", "compress_bits": 4},
    "sign": {"compress": "sign"},
    "rank 2": {"compress": "low_rank"},
    "top_k 1 %, 8 bits": {"compress": "top_k+quantise", "compress_ratio": 0.01},
    "8 bits down": {"downlink_bits": 8},
}
ON_CHEETAH = ("all", "top_k 1 %", "8 bits", "sign", "rank 2", "top_k 1 %, 8 bits")
NAVIGATION: dict[str, Any] = {"env": "navigation", "clients_per_round": 20, "selection": "uniform", "episodes": 10}
NAVIGATION |= {"rounds": 50, "max_change_norm": 0.0, "server_lr": 0.003, "adapt_steps": 1, "new_clients": 0}
CHEETAH: dict[str, Any] = {"env": "half_cheetah/direction", "rounds": 80, "adapt_steps": 1, "new_clients": 0}
PARTS = ("navigation", "half_cheetah")
SMOOTH = 5  # rounds that a point of the figure is the mean of


def lines(scale: Scale, part: str) -> dict[str, Members]:
    """The runs of each way."""
    short = {"rounds": 2, "num_clients": 20, "episodes": 2, "hidden": (8,)} if scale.name == "tiny" else {}
    common = {**(NAVIGATION if part == "navigation" else CHEETAH), "save_every": 1000, **short}
    seeds = range(2 if short else 3)
    preset = presets.preset("laptop", "fmrl", common["env"])
    return {
        label: {f"{part}/{slug(label)}/seed{s}": config.build("fmrl", preset, common, way, {"seed": s}) for s in seeds}
        for label, way in WAYS.items()
        if part == "navigation" or label in ON_CHEETAH
    }


def smooth(out: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(Bytes sent up so far, the return of training after one step, means of SMOOTH rounds) of a run."""
    sent, returns = (list(curve(out, name, key).values()) for key in ("comm/up_bytes", "train/return/adapt_1"))
    width = min(SMOOTH, len(returns))
    return np.cumsum(sent)[width - 1 :], np.convolve(returns, np.ones(width) / width, mode="valid")


def reached(out: Path, some: Members, wanted: float) -> list[float]:
    """Megabytes sent by all clients when the return was first `wanted`; NaN where it never was."""
    found = []
    for name in some:
        sent, returns = smooth(out, name)
        above = np.flatnonzero(returns >= wanted)
        found.append(float(sent[above[0]] / 1e6) if len(above) else float("nan"))
    return found


def experiment(scale: Scale, out: Path, envs: tuple[str, ...], methods: tuple[str, ...] = PARTS) -> None:
    """Each part: its runs, its table and figure."""
    del envs
    for part in methods:
        every = lines(scale, part)
        members = {n: c for some in every.values() for n, c in some.items()}
        run(scale, members, out)
        note = footer(scale, members, out)
        ends = [smooth(out, name)[1] for name in every["all"]]
        wanted = float(np.mean([returns[0] + 0.9 * (returns.max() - returns[0]) for returns in ends]))
        text = [f"# bytes: {part}", "", note, "", f"| | bytes of a message | 1 step | MB sent until {wanted:.0f} |"]
        text.append("|---" * 4 + "|")
        scores: dict[str, Any] = {}
        for label, some in every.items():
            rows = finals(out, some).values()
            after = [float(np.mean(row["eval/returns"], axis=0)[1]) for row in rows]
            name = next(iter(some))
            up, heard = (next(iter(curve(out, name, key).values())) for key in ("comm/up_bytes", "comm/uploads"))
            sent = reached(out, some, wanted)
            missing = sum(value != value for value in sent)
            cell = f"never in {missing} of {len(sent)}" if missing else f"{np.mean(sent):.3g}"
            text.append(f"| {label} | {up / heard:,.1f} | {over_all(after, some)} | {cell} |")
            known = [value if value == value else None for value in sent]  # JSON has no NaN
            scores[label] = {"message": up / heard, "after": after, "sent": known}
        (out / f"{part}.md").write_text("\n".join([*text, ""]))
        (out / f"{part}.json").write_text(json.dumps(scores, indent=1) + "\n")
        draw(out, every, out / f"{part}.png", note)
        print("\n".join(text))


def draw(out: Path, every: dict[str, Members], path: Path, note: str) -> None:
    """Returns against the bytes that were sent, means over seeds."""
    figure, ax = pyplot().subplots(figsize=(8, 4.6))
    ax.set_prop_cycle(color=pyplot().get_cmap("tab20").colors)
    for label, some in every.items():
        found = [smooth(out, name) for name in some]
        values = np.array([returns for _, returns in found])
        stats = np.array([statistics.mean_ci95(column) for column in values.T.tolist()], float)
        ax.plot(found[0][0] / 1e6, stats[:, 0], label=label, lw=1.4)
    means = f"{min(SMOOTH, next(iter(some.values())).rounds)}-round means"
    ax.set(xscale="log", xlabel="bytes that all clients have sent [MB]")
    ax.set(ylabel=f"selected clients after one step, {means}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    finish(figure, path, note, "means over seeds")


if __name__ == "__main__":
    main(__doc__, "bytes", experiment, methods=PARTS, envs=(), has_paper=False)
