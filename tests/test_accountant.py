"""The accountant against tables, closed forms and sampled privacy losses; the noise's coefficients against theirs."""

import subprocess
import sys

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import linalg, optimize, signal, stats

from fedjax_rl.federation.accountant import Releases, calibrate, capacity, claim, coefficients, epsilon, sensitivity
from fedjax_rl.host.exits import ConfigError

USUAL = Releases(200, 40, 500)
SMALL = Releases(20, 4, 50, delta=1e-3)


def gaussian(noise, delta=1e-5):
    """Epsilon of one Gaussian of sensitivity 1: delta(e) = Phi(1/2z - ez) - exp(e) Phi(-1/2z - ez), solved for e."""

    def over(e):
        up, down = stats.norm.logcdf([0.5 / noise - e * noise, -0.5 / noise - e * noise])
        return np.exp(up) - np.exp(e + down) - delta

    return optimize.brentq(over, 0.0, 1e4)


def test_what_a_run_costs_under_each_selection():
    def spent(**changes):
        return epsilon(5.0, USUAL._replace(**changes), 500)

    assert spent() == pytest.approx(4.011, abs=0.002)
    for selection in ("uniform", "stratified", "by_kind"):
        assert spent(selection=selection) == pytest.approx(20.69, abs=0.01)
    assert spent(clients_per_round=200) == pytest.approx(28.37, abs=0.01)
    assert spent(selection="cyclic") == pytest.approx(gaussian(5.0 / 10), rel=1e-6)
    assert epsilon(3.0, SMALL, 50) == pytest.approx(1.36, abs=0.03)  # 1.361 for cohorts without a largest size
    assert epsilon(3.0, SMALL._replace(selection="uniform"), 50) == pytest.approx(6.84, abs=0.01)
    assert epsilon(10.0, Releases(40, 40, 100), 100) == pytest.approx(gaussian(1.0), rel=1e-6)
    assert gaussian(1.0) == pytest.approx(4.377, abs=1e-3)


# (N, M, K, selection): the noise for epsilon 2, 8 and 16.
NOISE = {
    (200, 40, 500, "poisson"): (9.146, 2.849, 1.718),
    (200, 40, 500, "uniform"): (35.66, 10.71, 6.11),
    (1000, 100, 500, "poisson"): (4.636, 1.569, 1.038),
    (1000, 100, 500, "uniform"): (17.8, 5.34, 3.06),
    (10_000, 500, 500, "poisson"): (2.431, 1.024, 0.743),
    (10_000, 500, 500, "uniform"): (8.91, 2.71, 1.69),
    (200, 40, 100, "poisson"): (4.255, 1.479, 0.971),
}


@pytest.mark.parametrize("target", [2, *[pytest.param(e, marks=pytest.mark.nightly) for e in (8, 16)]])
def test_noise_of_the_table_costs_what_the_table_says(target):
    for sizes, noises in NOISE.items():
        noise, releases = noises[(2, 8, 16).index(target)], Releases(*sizes)
        low, high = (epsilon(factor * noise, releases, releases.rounds) for factor in (1.01, 0.99))
        assert low < target < high


CHEAP = (200, 40, 100, "poisson")


@pytest.mark.parametrize("sizes", [CHEAP, *[pytest.param(s, marks=pytest.mark.nightly) for s in NOISE if s != CHEAP]])
def test_noise_is_found_for_an_epsilon_and_never_costs_more(sizes):
    releases = Releases(*sizes)
    for target, noise in zip((2, 8, 16), NOISE[sizes], strict=True):
        found = calibrate(target, releases)
        assert found == pytest.approx(noise, rel=0.01)
        assert 0.995 * target < epsilon(found, releases, releases.rounds) <= target


@pytest.mark.parametrize(("target", "one"), [(1.0, 3.7306), (2.0, 1.9938), (8.0, 0.60023)])
def test_noise_where_no_chance_is_counted_on(target, one):
    """One Gaussian, stretched by how far a client can move everything."""
    cases = {
        1.0: Releases(40, 40, 1),
        np.sqrt(500): Releases(40, 40, 500),
        np.sqrt(100): Releases(200, 40, 500, "cyclic"),
        np.sqrt(101): Releases(200, 40, 501, "cyclic", "banded"),
        2 * np.sqrt(500): Releases(200, 40, 500, where="local"),
        2 * np.sqrt(50): Releases(400, 40, 500, "cyclic", where="local"),
    }
    for factor, releases in cases.items():
        assert calibrate(target, releases) == pytest.approx(one * factor, rel=1e-4)
        assert epsilon(one * factor, releases, releases.rounds) == pytest.approx(target, rel=1e-3)


def test_rounds_so_far():
    assert [epsilon(5.0, USUAL._replace(selection=name), 0) for name in ("poisson", "cyclic", "uniform")] == [0.0] * 3
    poisson = [epsilon(5.0, USUAL, k) for k in (1, 10, 100, 500)]
    assert poisson == sorted(poisson) and poisson[0] < 0.5 < 1.5 < poisson[2]
    cyclic = USUAL._replace(selection="cyclic")
    for k, times in ((1, 1), (5, 1), (6, 2), (500, 100)):
        assert epsilon(5.0, cyclic, k) == pytest.approx(gaussian(5.0 / np.sqrt(times)), rel=1e-6)
    banded = cyclic._replace(kind="banded")
    assert epsilon(50.0, banded, 1) == epsilon(50.0, banded, 500) == pytest.approx(gaussian(5.0), rel=1e-6)


def test_one_round_of_poisson_sampling_in_float64():
    """delta at the claimed epsilon by quadrature of (1 - q) N(0) + q N(1) against N(0), in both orders."""
    q, z, delta = 0.1, 1.0, 1e-3
    found = epsilon(z, Releases(20_000, 2000, 1, delta=delta), 1)
    y = np.linspace(-12.0, 13.0, 400_001)
    without = stats.norm.pdf(y, 0.0, z)
    with_client = (1 - q) * without + q * stats.norm.pdf(y, 1.0, z)

    def most(e):
        pairs = ((with_client, without), (without, with_client))
        return max(np.trapezoid(np.maximum(p - np.exp(e) * r, 0.0), y) for p, r in pairs)

    exact = optimize.brentq(lambda e: most(e) - delta, 0.0, 5.0)
    assert exact < found < 1.05 * exact  # a cohort is cut in 0.1 % of the rounds


def test_little_noise_is_told_in_time_and_memory():
    """A grid of 1e-3 would take gigabytes here. Each round of a client costs near 1 / 2 z^2."""
    rounds = stats.binom.isf(1e-5, 500, 40 / 200)  # with probability 1e-5 it has more
    assert epsilon(0.01, USUAL, 500) * 2 * 0.01**2 == pytest.approx(rounds, rel=0.02)


def test_the_figure_of_poisson_is_false_for_uniform_selection():
    """Everybody else sends -C: with the client a round is (1 - q) N(0) + q N(2), without (1 - q) N(0) + q N(1)."""
    q, z, rng = 4 / 20, 3.0, np.random.default_rng(0)
    poisson = epsilon(z, SMALL, 50)
    proven = epsilon(z, SMALL._replace(selection="uniform"), 50)

    def losses(step):
        log_ratio = lambda y, shift: np.log1p(-q + q * np.exp((2 * shift * y - shift**2) / (2 * z**2)))
        y = step * (rng.random((200_000, 50)) < q) + z * rng.standard_normal((200_000, 50))
        return (log_ratio(y, 2.0) - log_ratio(y, 1.0)).sum(axis=1)

    loss = losses(2.0)
    delta = lambda e: np.mean(np.maximum(1 - np.exp(e - loss), 0.0))
    true = optimize.brentq(lambda e: delta(e) - 1e-3, 0.1, 5.0)
    assert true == pytest.approx(1.73, abs=0.05)
    assert poisson + 0.25 < true < proven


def test_others_accountants_mean_another_noise_by_replacement():
    """Where a client is replaced, it moves the sum by 2: the multiplier is for 2 C in one accountant, for C in others.

    Ours is for C everywhere: `local` asks for 2 itself, and `uniform` is below what Renyi's accountant proves for z/2.
    """
    replaced = dp.NeighboringRelation.REPLACE_ONE
    one = dp.GaussianDpEvent(1.0)
    loss_distribution = pld.PLDAccountant(replaced, 1e-3).compose(one).get_epsilon(1e-5)
    renyi = rdp.RdpAccountant(neighboring_relation=replaced).compose(one).get_epsilon(1e-5)
    assert loss_distribution == pytest.approx(9.997, abs=0.01) and renyi == pytest.approx(4.729, abs=0.01)
    local = Releases(200, 40, 1, where="local")
    assert epsilon(1.0, local, 1) == pytest.approx(loss_distribution, abs=0.01)

    def without_replacement(noise):
        event = dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(200, 40, dp.GaussianDpEvent(noise)), 500)
        return rdp.RdpAccountant(neighboring_relation=replaced).compose(event).get_epsilon(1e-5)

    ours = epsilon(5.0, USUAL._replace(selection="uniform"), 500)
    assert without_replacement(2.5) == pytest.approx(23.8, abs=0.1)
    assert without_replacement(5.0) < 0.5 * ours < ours < without_replacement(2.5)


def test_clients_that_are_not_simulated():
    """200 clients stand for 10 000: the figure is that of 10 000, of whom 2000 take part."""
    found = epsilon(3.0, USUAL._replace(population=10_000), 100)
    assert found == pytest.approx(epsilon(3.0, Releases(10_000, 2000, 500), 100), rel=1e-9)
    assert found < epsilon(3.0, USUAL, 100)  # a larger cohort is cut less often


@pytest.mark.parametrize(
    ("n", "m", "cap"), [(200, 40, 57), (1000, 100, 129), (10_000, 500, 566), (20, 4, 10), (8, 8, 8)]
)
def test_capacity(n, m, cap):
    assert capacity(n, m) == cap


# (b, K): root mean square and last of the errors of prefix sums in units of C, for epsilon 2 and 8.
ERRORS = {(5, 500): ((148, 206), (45, 62)), (10, 500): ((79, 107), (24, 32))}


@pytest.mark.parametrize(("bands", "rounds"), ERRORS)
def test_banded_noise_is_as_small_as_the_table_says(bands, rounds):
    c = coefficients(rounds, bands)
    assert c.shape == (bands,) and (c > 0).all() and (np.diff(c) <= 0).all()
    assert c @ c == pytest.approx(1.0, rel=1e-12)
    inverse = linalg.solve_triangular(band(c, rounds), np.eye(rounds), lower=True)
    variance = (np.tril(np.ones((rounds, rounds))) @ inverse) ** 2 @ np.ones(rounds)
    for target, (mean, last) in zip((2.0, 8.0), ERRORS[bands, rounds], strict=True):
        noise = calibrate(target, Releases(40 * bands, 40, rounds, "cyclic", "banded"))
        half = 0.5 / mean  # the table's last digit
        assert noise * np.sqrt(variance.mean()) == pytest.approx(mean, rel=0.02 + half)
        assert noise * np.sqrt(variance[-1]) == pytest.approx(last, rel=0.02 + half)


def band(c, rounds):
    return linalg.toeplitz(np.r_[c, np.zeros(rounds - len(c))], np.zeros(rounds))


def squared_error(c, rounds):
    """The mean square of the errors for coefficients of any norm, which they are brought to."""
    w = signal.lfilter([1.0], c, np.ones(rounds))
    return (c @ c) * np.arange(rounds, 0, -1) @ w**2


def test_no_coefficients_nearby_are_better():
    c, rng = coefficients(300, 6), np.random.default_rng(0)
    found = squared_error(c, 300)
    closed = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, 6))])
    assert found < 0.85 * squared_error(closed, 300)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(50):
            assert squared_error(c * (1 + size * rng.standard_normal(6)), 300) > found * (1 - 1e-9)
    again = coefficients(300, 6)
    assert (again == c).all()


def test_coefficients_of_few_rounds():
    assert coefficients(500, 1).tolist() == [1.0]
    c = coefficients(3, 5)
    assert c.shape == (5,) and (np.diff(c) <= 0).all() and c[3:].max() < 1e-3 and c @ c == pytest.approx(1.0)


@pytest.mark.parametrize(("rounds", "bands"), [(500, 5), (503, 5), (100, 10), (7, 10)])
def test_no_client_moves_more_than_the_sensitivity(rounds, bands):
    """|C X| for a client of each group, whatever it sends: at most the root of the sum of |its columns' products|."""
    matrix = band(coefficients(max(rounds, bands), bands), max(rounds, bands))[:rounds, :rounds]
    products = np.abs(matrix.T @ matrix)
    moved = [np.sqrt(products[group::bands, group::bands].sum()) for group in range(min(bands, rounds))]
    assert max(moved) <= sensitivity(rounds, bands) * (1 + 1e-12)
    assert max(moved) > 0.9 * sensitivity(rounds, bands)


def test_what_is_claimed():
    text = claim(5.0, USUAL, 500)
    assert "epsilon = 4.01, delta = 1e-05) after 500 rounds, client-level, zero-out adjacency" in text
    assert "N = 200, M = 40, K = 500" in text and "Not covered: the metrics of this run" in text
    simulated = claim(5.0, USUAL._replace(population=10_000), 500)
    assert simulated.startswith("Simulated for 10000 clients: (epsilon = 3.")
    local = claim(5.0, USUAL._replace(where="local"), 10)
    alone, together = gaussian(2.5), gaussian(2.5 / np.sqrt(10))
    assert f"(epsilon = {together:.2f}" in local and f"One message alone: epsilon = {alone:.2f}" in local
    assert "replacement adjacency" in local and "zero-out" not in local


def test_a_missing_library_is_named_and_jax_is_not_needed(monkeypatch):
    program = "import sys, fedjax_rl.federation.accountant as a; a.capacity(9, 3); a.coefficients(9, 3)"
    check = "assert not {'jax', 'dp_accounting'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{program}; {check}"], check=True)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for call in (lambda: epsilon(1.0, USUAL, 1), lambda: calibrate(1.0, USUAL), lambda: claim(1.0, USUAL, 0)):
        with pytest.raises(ConfigError, match=r"pip install 'fedjax-rl\[privacy\]'"):
            call()
