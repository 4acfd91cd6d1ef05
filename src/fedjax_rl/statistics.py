"""Numbers for people: means, 95 % confidence intervals and the table that a run ends with."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

RESAMPLES = 2000


def short(values: Any) -> Any:
    """The numbers of an array as nested lists: whole ones as they are, float32 with the fewest digits that name it."""
    array = np.asarray(values)
    if array.dtype.kind == "i":
        return array.tolist()
    array = array.astype(np.float32)
    return np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape).tolist()


def t_quantile(p: float, dof: int) -> float:
    """The p-quantile of Student's t with `dof` degrees of freedom."""
    return float(scipy.special.stdtrit(dof, p))


def mean_ci95(values: Sequence[float | None]) -> tuple[float, float | None]:
    """(mean, half-width of the 95 % interval t_.975 s / sqrt(n)); one value has no interval: None.

    A record's null is a number that was not finite: the mean is NaN.
    """
    n, numbers = len(values), [math.nan if v is None else v for v in values]
    mean = math.fsum(numbers) / n
    if n < 2:
        return mean, None
    variance = math.fsum((v - mean) ** 2 for v in numbers) / (n - 1)
    return mean, t_quantile(0.975, n - 1) * math.sqrt(variance / n)


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean of scores [S, N]: the mean of all of them but the int(SN/4) lowest and as many highest.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
    """
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def worst_tenth(scores: np.ndarray) -> np.ndarray:
    """[S]: the mean of each seed's ceil(N/10) lowest scores, of [S, N]."""
    count = -(-scores.shape[1] // 10)
    return np.sort(scores, axis=1)[:, :count].mean(axis=1)


def improvement(gains: np.ndarray) -> float:
    """Probability of improvement, of the gains [S, N] of one method's scores over another's for S seeds' N clients:

        1/(SN) sum_{s, i} (1[d_si > 0] + 1[d_si = 0] / 2)

    Agarwal et al. 2021 (see `iqm`) compare every run with every other. Client i has another task in every seed, so
    here a client is compared with itself, of the same seed.
    """
    return float((gains > 0).mean() + 0.5 * (gains == 0).mean())


def bootstrap_ci95(statistic: Callable[[np.ndarray], float], scores: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of statistic(scores [S, N]) by the bootstrap over runs.

    Agarwal et al. 2021 (see `iqm`) resample the runs of each task, the strata. Here a run is a seed and a task an
    environment, of which a report has one: every resample draws S whole seeds with replacement. The N clients of a
    seed share a model, so that to resample them one by one would average away what differs between seeds. The
    generator's seed is fixed: the same runs give the same report.

    With few seeds it is too narrow: for the mean of normal scores it holds the true one in 75, 84 and 90 % of the cases
    at S = 3, 5 and 10. A mean over seeds has `mean_ci95`.
    """
    rng = np.random.default_rng(0)

    draws = [statistic(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def summarise(returns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """{"mean": [k+1], "ci95": [k+1], "num_clients": n} of per-client returns [n, k+1]."""
    columns = [mean_ci95(column) for column in zip(*returns, strict=True)]
    return {"mean": [m for m, _ in columns], "ci95": [c for _, c in columns], "num_clients": len(returns)}


def named(prefix: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary under its metric names: {"eval/return/adapt_0": {"mean", "ci95", "num_clients"}, ...}."""
    pairs = enumerate(zip(summary["mean"], summary["ci95"], strict=True))
    count = summary["num_clients"]
    return {f"{prefix}/return/adapt_{j}": {"mean": m, "ci95": c, "num_clients": count} for j, (m, c) in pairs}


def cell(mean: float, half: float | None) -> str:
    """'12.3 ± 4.5'; '-' where there is no interval."""
    return f"{mean:.1f} ± {'-' if half is None else f'{half:.1f}'}"


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of mean ± 95 % interval over clients, before adaptation and after each step."""
    steps = max(len(s["mean"]) for s in summaries.values()) - 1
    header = ["return", "clients", "before", *[f"{j} step{'s' if j > 1 else ''}" for j in range(1, steps + 1)]]
    rows = [header]
    for label, s in summaries.items():
        cells = [cell(m, c) for m, c in zip(s["mean"], s["ci95"], strict=True)]
        rows.append([label, str(s["num_clients"]), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *[c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]])
        for row in rows
    ]
    return "\n".join([*lines, "mean ± 95 % confidence interval over clients"])
