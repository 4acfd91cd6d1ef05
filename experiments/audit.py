"""Can a claim of privacy be refuted? Claimed epsilon against what an auditor proves, for right and for wrong code.

    python -m experiments.audit [--scale laptop] [--out DIR]

The real private sum and the real selections, on messages of one number: 20 clients, 4 a round, 50 rounds, z = 3,
delta 1e-3. There are many runs with one client, the canary, that does its worst, and many without it. Their scores
prove, with confidence 95 %, an epsilon that the mechanism has at least. It must be below the claim. That of three
seeded faults is above.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, optimize, special, stats

from experiments.common import Scale, main
from fedjax_rl.federation import selection
from fedjax_rl.federation.accountant import Releases, coefficients, epsilon
from fedjax_rl.federation.private import private
from fedjax_rl.host.numerics import root_key

LEVEL = 0.05  # a bound is false in at most so many audits
N, M, K, Z, DELTA = 20, 4, 50, 3.0, 1e-3
Q, SMALL = M / N, Releases(N, M, K, delta=DELTA)


def at_least(present, absent, delta, level=LEVEL):
    """The epsilon that scores [R] with the canary and [R] without it prove, either way round.

    A test "score > t" has P(with) <= e^epsilon P(without) + delta. t is the best for a quarter of the scores. The
    others give the exact limits of Clopper and Pearson of the two probabilities.
    """
    one, other = (np.split(np.asarray(x), [len(x) // 4]) for x in (present, absent))
    reverse = ([-x for x in other], [-x for x in one])
    return max(_one_sided(*pair, delta, level / 2) for pair in ((one, other), reverse))


def _one_sided(present, absent, delta, level):
    thresholds = np.quantile(np.concatenate([present[0], absent[0]]), np.linspace(0.5, 0.9995, 400))
    first, second = ([(x[:, None] > thresholds).sum(axis=0) for x in (present[i], absent[i])] for i in (0, 1))
    best = np.argmax(_bound(*first, len(present[0]), delta, level))
    return float(_bound(*[count[best : best + 1] for count in second], len(present[1]), delta, level)[0])


def _bound(hits, false, runs, delta, level):
    low = np.where(hits > 0, stats.beta.ppf(level / 2, np.maximum(hits, 1), runs - hits + 1), 0.0)
    high = np.where(false < runs, stats.beta.isf(level / 2, false + 1, np.maximum(runs - false, 1)), 1.0)
    return np.log(np.maximum(low - delta, 1e-12) / high)


def at_least_in_one_run(scores, enrolled, guesses, delta, level=LEVEL):
    """The epsilon that one run proves, whose m canaries took part by a coin each.

    The auditor guesses that the highest scores took part and the lowest did not, `guesses` in all. If the mechanism has
    epsilon, v or more are right with probability P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i at most, where B is
    binomial of probability e^epsilon / (1 + e^epsilon). Steinke, Nasr and Jagielski, "Privacy Auditing with One (1)
    Training Run", NeurIPS 2023, Theorem 5.2.
    """
    order = np.argsort(scores)
    half = guesses // 2
    right = enrolled[order[-half:]].sum() + (~enrolled[order[:half]]).sum()

    def chance(e):
        law = stats.binom(2 * half, special.expit(e))
        steps = np.arange(1, right + 1)
        gain = ((law.cdf(right - 1) - law.cdf(right - 1 - steps)) / steps).max(initial=0.0)
        return law.sf(right - 1) + 2 * len(scores) * delta * gain

    return optimize.brentq(lambda e: chance(e) - level, 0.0, 30.0) if chance(0.0) < level else 0.0


def sums(select, cases, runs=20_000):
    """[R, K] of each case (aggregator, canary, others): M times what the server makes of each round, in units of C.

    All cases have the same clients in a round, which saves time, and noise of their own. A canary of 0 stays silent.
    """

    def run(key):
        draws, noise = jax.random.split(key)

        def step(states, k):
            ids, chosen = select(draws, k, N, M)
            done = []
            for i, ((aggregator, canary, others), state) in enumerate(zip(cases, states, strict=True)):
                own = jax.random.fold_in(jax.random.fold_in(noise, k), i)
                weights = jnp.where(chosen & ((ids > 0) | (canary != 0)), 1.0, 0.0)
                messages = jnp.where(weights > 0, jnp.where(ids == 0, canary, others), 0.0)
                done.append(aggregator.update(messages, weights, state, own))
            return [state for _, state in done], jnp.stack([found for found, _ in done])

        return jax.lax.scan(step, [case[0].init(jnp.zeros(())) for case in cases], jnp.arange(K))[1]

    found = jax.jit(jax.vmap(run))(jax.random.split(root_key(1), runs))
    return M * np.moveaxis(np.asarray(found, np.float64), 2, 0)


def density(y, terms):
    """Of a mixture of normals: (probability, mean, deviation) each."""
    return sum(p / s * np.exp(-0.5 * ((y - mean) / s) ** 2) for p, mean, s in terms)


def scores(y, present, absent):
    """Log-likelihood ratios [R] of runs [R, K], each of whose rounds is one mixture or the other."""
    return np.log(density(y, present) / density(y, absent)).sum(axis=1)


def proven(found, law):
    """The epsilon that rounds with either canary prove; `law` is what a round looks like with each."""
    return at_least(*[scores(y, *law) for y in found], DELTA)


def drawn(without, with_canary):
    """The law of rounds in which the canary is heard with probability q."""
    return [((1 - Q) * p, *rest) for p, *rest in without] + [(Q * p, *rest) for p, *rest in with_canary], without


def mean_over_the_heard(messages, weights, state, key):
    """The fault: the sum is divided by how many came."""
    found, _ = HONEST.update(messages, weights, state, key)
    noise, _ = HONEST.update(jnp.zeros_like(messages), weights, state, key)
    return noise + (found - noise) * M / jnp.maximum((weights > 0).sum(), 1), state


HONEST = private(clip=1.0, noise=Z, clients_per_round=M)
CLAIMED = epsilon(Z, SMALL, K)
HEARD = [(n, stats.binom.pmf(n, N - 1, Q)) for n in range(12)]  # how many of the others, of Poisson sampling
POISSON = {
    "alone": (HONEST, 0.0),
    "opposed": (HONEST, -1.0),
    "mean": (HONEST._replace(update=mean_over_the_heard), -1.0),
    "half": (private(clip=1.0, noise=Z / 2, clients_per_round=M), 0.0),
}


POISSON_LAWS = {
    "alone": drawn([(1.0, 0.0, Z)], [(1.0, 1.0, Z)]),
    "opposed": drawn([(p, -n, Z) for n, p in HEARD], [(p, 1.0 - n, Z) for n, p in HEARD]),
    # all others send -C, and so does their mean, whoever comes; one C more moves it by 2 C / n
    "mean": drawn([(p, -M * n / max(n, 1), Z) for n, p in HEARD], [(p, M * (1 - n) / (n + 1), Z) for n, p in HEARD]),
    "half": drawn([(1.0, 0.0, Z / 2)], [(1.0, 1.0, Z / 2)]),
}


def poisson_rounds(runs: int = 20_000) -> dict[str, np.ndarray]:
    """By name of POISSON: rounds [2, R, K] with the canary and without it."""
    cases = [(aggregator, canary, others) for aggregator, others in POISSON.values() for canary in (1.0, 0.0)]
    found = sums(selection.poisson, cases, runs)
    return {name: found[2 * i : 2 * i + 2] for i, name in enumerate(POISSON)}


def replaced(runs: int = 20_000) -> float:
    """What is proven of uniform selection by a canary that sends C or -C: nobody is left out, but replaced."""
    law = ([(1 - Q, 0.0, Z), (Q, 1.0, Z)], [(1 - Q, 0.0, Z), (Q, -1.0, Z)])
    return proven(sums(selection.uniform, [(HONEST, 1.0, 0.0), (HONEST, -1.0, 0.0)], runs), law)


def zeroed(runs: int) -> float:
    """What is proven of uniform selection where all others send -C: -M + 2 with the canary heard, -M + 1 without."""
    law = ([(1 - Q, -M, Z), (Q, 2.0 - M, Z)], [(1 - Q, -M, Z), (Q, 1.0 - M, Z)])
    return proven(sums(selection.uniform, [(HONEST, 1.0, -1.0), (HONEST, 0.0, -1.0)], runs), law)


def in_turns(noise: float = 6.0, runs: int = 20_000) -> dict[str, tuple[float, float]]:
    """(Claimed, proven) of cyclic selection by noise, where the auditor knows the groups and undoes the bands."""
    groups = root_key(0)
    noises = {"white": np.ones(1), "banded": coefficients(K, N // M)}
    cases = [
        (private(clip=1.0, noise=noise, clients_per_round=M, coefficients=c if len(c) > 1 else None), canary, 0.0)
        for c in noises.values()
        for canary in (1.0, 0.0)
    ]
    rounds = sums(lambda _, k, n, m: selection.cyclic(groups, k, n, m), cases, runs).reshape(2, 2, -1, K)
    turns = np.array([float((selection.cyclic(groups, k, N, M)[0] == 0).any()) for k in range(K)])
    found = {}
    for (kind, c), either in zip(noises.items(), rounds, strict=True):
        matrix = linalg.toeplitz(np.r_[c, np.zeros(K - len(c))], np.zeros(K))
        claimed = epsilon(noise, Releases(N, M, K, "cyclic", kind, DELTA), K)
        found[kind] = (claimed, at_least(*(either @ matrix.T @ matrix @ turns), DELTA))
    return found


def experiment(scale: Scale, out: Path, envs: tuple[str, ...]) -> None:
    """The table: what is claimed, what is proven, and whether that refutes it."""
    del envs
    runs, many = (2_000, 4_000) if scale.name == "tiny" else (20_000, 400_000)
    poisson = {name: proven(found, POISSON_LAWS[name]) for name, found in poisson_rounds(runs).items()}
    turns, uniform, silent = in_turns(runs=runs), epsilon(Z, SMALL._replace(selection="uniform"), K), zeroed(many)
    rows = {
        "poisson, the others send nothing": (CLAIMED, poisson["alone"]),
        "poisson, the others send the opposite": (CLAIMED, poisson["opposed"]),
        "cyclic, white": turns["white"],
        "cyclic, banded": turns["banded"],
        "uniform, by its own claim": (uniform, silent),
        "fault: the mean over who was heard": (CLAIMED, poisson["mean"]),
        "fault: half of the noise": (CLAIMED, poisson["half"]),
        "fault: uniform by poisson's claim, C for -C": (CLAIMED, replaced(runs)),
        "fault: uniform by poisson's claim, C for nothing": (CLAIMED, silent),
    }
    text = [
        "# audit",
        "",
        f"{runs:,} runs each with the canary and without it ({many:,} of uniform, C for nothing).",
        "",
    ]
    text += ["| | claimed | proven, 95 % | refuted |", "|---|---|---|---|"]
    text += [f"| {name} | {c:.2f} | {p:.2f} | {'yes' if p > c else 'no'} |" for name, (c, p) in rows.items()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.md").write_text("\n".join([*text, ""]))
    (out / "audit.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main(__doc__, "audit", experiment, envs=(), has_paper=False, has_runs=False)
