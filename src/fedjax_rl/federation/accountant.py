"""What a private federation can claim: epsilon from noise, noise from epsilon, and noise that largely cancels itself.

Host only: no jax, and dp-accounting (the optional extra `privacy`) is imported where it is first needed.
"""

import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy import optimize, signal

from fedjax_rl.host.exits import ConfigError


class Releases(NamedTuple):
    """What a federation lets others see, as far as the accountant has to know.

    Attributes:
      num_clients: N.
      clients_per_round: M; of `poisson` the mean.
      rounds: K, how many noisy sums the whole run releases. It is known beforehand.
      selection: "poisson" (at most `capacity` at a time), "cyclic" (M divides N), "uniform", "stratified" or "by_kind".
      kind: "white", noise that is independent in every round, or "banded" (`coefficients`), for `cyclic` alone.
      delta: below 1 / N.
      population: N' >= N, for `poisson`: the claim is for N' clients, M N' / N of them in a round, of whom N are
        simulated. The aggregator's noise is then `noise` N / N'. 0: N.
      where: "central", the server adds noise to the sum; or "local", every client to its own message.
    """

    num_clients: int
    clients_per_round: int
    rounds: int
    selection: str = "poisson"
    kind: str = "white"
    delta: float = 1e-5
    population: int = 0
    where: str = "central"


def capacity(num_clients: int, clients_per_round: float) -> int:
    """The most clients of a round of Poisson sampling: min(N, ceil(M + 3 sqrt(M (1 - M/N)))), three deviations above M.

    >>> capacity(200, 40)
    57
    """
    deviation = math.sqrt(clients_per_round * (1 - clients_per_round / num_clients))
    return min(num_clients, math.ceil(clients_per_round + 3 * deviation))


def sensitivity(rounds: int, bands: int) -> float:
    """sqrt(ceil(K / b)): how far one client can move all of C X, in units of its clip norm.

    X [K, d] are the sums of K rounds; C has b bands and columns of length 1 (at most: the last are cut off). A client
    that takes part in every b-th round moves ceil(K / b) rows of X by 1 each. The columns of C that these rows meet
    have no row in common, so that their squares add up. For b = 1, C is the identity, and this is sqrt(K).

    Source: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to private training",
    NeurIPS 2023.
    """
    return math.sqrt(math.ceil(rounds / bands))


def epsilon(noise: float, releases: Releases, rounds_done: int) -> float:
    """Epsilon of what was released so far, for zero-out adjacency: with all that one client sends, or without it.

    * `cyclic`, and everybody in every round: one Gaussian mechanism; Balle and Wang, "Improving the Gaussian Mechanism
      for Differential Privacy", ICML 2018. With `banded` it is the figure of the whole run from the first round on.
    * `poisson`: Poisson sampling cut at the capacity, composed as privacy loss distributions.
    * `uniform`, `stratified`: what is proven, which is far more. Everybody is drawn and cut to a uniform subset, or in
      every stratum to one. The figure of `poisson` would be false: here a client that is drawn takes another's place.
    * `local`: replacement adjacency, of length 2. No amplification by sampling: the server sees who sends.

    Args:
      noise: z, the standard deviation in units of the clip norm: of the noise in a sum; of Z where C^-1 Z is added
        (`banded`); or of a client's own noise (`local`).
      releases: what is released.
      rounds_done: of `releases.rounds`.

    Returns:
      Epsilon for `releases.delta`; 0.0 before the first round.

    Raises:
      ConfigError: dp-accounting is not installed.
    """
    dp = _dp_accounting()
    if rounds_done == 0:
        return 0.0
    length = _length(releases, rounds_done)
    if length is not None:
        return float(dp.get_epsilon_gaussian(noise / length, releases.delta))
    return float(_accountant(dp, noise).compose(_event(dp, noise, releases, rounds_done)).get_epsilon(releases.delta))


def calibrate(epsilon: float, releases: Releases) -> float:
    """The noise for which all rounds together cost at most `epsilon`: z, as in the function `epsilon`.

    The last digits depend on the version of dp-accounting, so a run should keep what it was given.

    Args:
      epsilon: the target, above 0.
      releases: what is released.

    Raises:
      ConfigError: dp-accounting is not installed.
    """
    dp = _dp_accounting()
    alone = float(dp.get_sigma_gaussian(epsilon, releases.delta))
    length = _length(releases, releases.rounds)
    if length is not None:
        return alone * length

    def spent(noise: float) -> float:
        event = _event(dp, noise, releases, releases.rounds)
        return _accountant(dp, noise).compose(event).get_epsilon(releases.delta)

    # enough whoever is drawn: a round moves by 2 at most, where one client takes another's place. Halved from there, no
    # noise is tried that is less than half of the answer; far too little noise takes minutes and gigabytes
    high = 2.1 * math.sqrt(releases.rounds) * alone
    while spent(high / 2) <= epsilon:
        high /= 2
    return float(
        dp.calibrate_dp_mechanism(
            lambda: _accountant(dp, high),
            lambda noise: _event(dp, noise, releases, releases.rounds),
            epsilon,
            releases.delta,
            bracket_interval=dp.mechanism_calibration.ExplicitBracketInterval(high / 2, high),
            tol=1e-4 * high,
        )
    )


def _length(releases: Releases, rounds: int) -> float | None:
    """How far one client can move all that is released, in units of the clip norm; None where chance is counted on."""
    cycle = releases.num_clients // releases.clients_per_round if releases.selection == "cyclic" else 1
    if releases.where == "local":
        return 2 * sensitivity(rounds, cycle)
    if releases.kind == "banded":
        return sensitivity(releases.rounds, cycle)
    if releases.selection == "cyclic" or releases.clients_per_round == releases.num_clients:
        return sensitivity(rounds, cycle)
    return None


def _event(dp: ModuleType, noise: float, releases: Releases, rounds: int):
    """Some rounds, as dp-accounting has them: how many there are to draw, with what probability, cut to how many."""
    clients, cohort = releases.num_clients, releases.clients_per_round
    if releases.selection == "poisson":
        among = releases.population or clients
        drawn = (among, cohort / clients, capacity(among, among * cohort / clients))
    elif releases.selection == "uniform":
        drawn = (clients, 1.0, cohort)
    else:  # one of a stratum, the smallest; the others are drawn independently
        drawn = (clients // cohort, 1.0, 1)
    return dp.SelfComposedDpEvent(dp.TruncatedSubsampledGaussianDpEvent(*drawn, noise), rounds)


def _accountant(dp: ModuleType, noise: float):
    # losses are rounded up to a grid. With little noise they are large, and a coarser grid does (1e-3 of epsilon)
    grid = max(1e-3, 2e-4 / noise**2)
    return dp.pld.PLDAccountant(dp.NeighboringRelation.REPLACE_SPECIAL, grid)


def _dp_accounting() -> ModuleType:
    try:
        import dp_accounting
        import dp_accounting.mechanism_calibration
        import dp_accounting.pld
    except ImportError as error:
        raise ConfigError("differential privacy needs dp-accounting: pip install 'fedjax-rl[privacy]'") from error
    return dp_accounting


def coefficients(rounds: int, bands: int) -> np.ndarray:
    """The c [b] of noise X = C^-1 Z that largely cancels itself over the rounds; C is Toeplitz, lower, of b bands.

    They minimise the mean over k = 1..K of e_k, the variance of the sum of k rounds' noise for Z of variance 1:
    e_k = sum_{j < k} w_j^2, where w is the series of 1 / ((1 - x) c(x)). They are not negative, do not increase, and
    have norm 1. This is the best such noise for a server that adds what it gets (sgd); for others it is a heuristic.

    Source: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to private training",
    NeurIPS 2023. It begins at c_j = binom(2j, j) / 4^j of Kalinin and Lampert, "Banded Square Root Matrix Factorization
    for Differentially Private Model Training", NeurIPS 2024.

    Args:
      rounds: K.
      bands: b, how many rounds apart a client's turns are.
    """
    start = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, bands))])
    left = np.arange(rounds, 0, -1)  # in how many of the sums a noise of round j is

    def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
        c = np.cumsum(u[::-1] ** 2)[::-1]  # c_j = sum_{i >= j} u_i^2
        w = signal.lfilter([1.0], c, np.ones(rounds))
        size, error = c @ c, left @ w**2
        dw = signal.lfilter([1.0], c, w)  # of c_m, delayed by m, with the sign turned
        weighted = left * w
        slope = np.array([-2 * weighted[m:] @ dw[: max(rounds - m, 0)] for m in range(bands)])
        by_c = slope / error + 2 * c / size
        return math.log(error * size), 2 * u * np.cumsum(by_c)

    steps = start - np.append(start[1:], 0.0)
    found = optimize.minimize(loss, np.sqrt(steps), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    c = np.cumsum(found[::-1] ** 2)[::-1]
    return c / np.linalg.norm(c)


def claim(noise: float, releases: Releases, rounds_done: int) -> str:
    """What is claimed of the rounds so far, and what is not, in words for people.

    Args:
      noise: as in the function `epsilon`.
      releases: what is released.
      rounds_done: of `releases.rounds`.

    Raises:
      ConfigError: dp-accounting is not installed.
    """
    spent = epsilon(noise, releases, rounds_done)
    sizes = f"N = {releases.num_clients}, M = {releases.clients_per_round}, K = {releases.rounds}"
    figure = f"(epsilon = {spent:.2f}, delta = {releases.delta:g}) after {rounds_done} rounds, client-level"
    beyond = (
        "Not covered: the metrics of this run, choosing a checkpoint or hyperparameters by them, and attacks on "
        "floating-point numbers or the random generator."
    )
    if releases.where == "local":
        one = epsilon(noise, releases, min(rounds_done, 1))
        return (
            f"{figure}, local, replacement adjacency: any two sequences of messages that one client may have. One "
            f"message alone: epsilon = {one:.2f}. {sizes} and the clip norm are public, and who sends when. It holds "
            f"towards the server too. {beyond}"
        )
    if releases.population:
        figure = f"Simulated for {releases.population} clients: {figure}"
    return (
        f"{figure}, zero-out adjacency: two federations that differ in everything one client ever sends; {sizes} and "
        f"the clip norm are public. It covers every model that the server ever held. {beyond} A client's personal "
        "model is private towards all other clients (joint differential privacy), not towards itself."
    )
