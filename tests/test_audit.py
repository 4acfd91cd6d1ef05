"""What can falsify the claim of privacy: attacks on the private sum and the selections that the engine runs.

The auditor and the seeded faults are those of the study `experiments.audit`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments import audit, common
from experiments.audit import CLAIMED, LEVEL, SMALL, K, Z, at_least, at_least_in_one_run, proven
from fedjax_rl.federation import selection
from fedjax_rl.federation.accountant import Releases, epsilon
from fedjax_rl.federation.private import private

# The auditor itself, on a mechanism whose epsilon is known.


@pytest.mark.parametrize("noise", [0.7, 1.5])
def test_the_auditor_bounds_a_gaussian_from_below(noise):
    rng, delta = np.random.default_rng(0), 1e-3
    true = epsilon(noise, Releases(1, 1, 1, delta=delta), 1)
    draw = lambda: noise * rng.standard_normal(20_000)
    found = [at_least(1 + draw(), draw(), delta) for _ in range(20)]
    assert 0.5 * true < min(found)
    assert sum(bound > true for bound in found) <= 3  # of 20, where one is expected at most


def test_the_auditor_of_one_run_bounds_randomised_response_from_below():
    """Each canary's own bit, true with probability e^2 / (1 + e^2): no mechanism of epsilon 2 shows more."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(20):
        enrolled = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < special.expit(2.0), enrolled, ~enrolled)
        found.append(at_least_in_one_run(told + 1e-3 * rng.random(1000), enrolled, 600, 1e-5))
    assert 1.5 < np.mean(found) < 2.0 and sum(bound > 2.0 for bound in found) <= 3


def test_the_auditors_have_the_numbers_of_their_sources():
    assert audit._bound(np.array([75]), np.array([10]), 100, 0.0, 0.05)[0] == pytest.approx(
        math.log(0.6534 / 0.1762), abs=1e-3
    )
    # all of r guesses right: e^epsilon / (1 + e^epsilon) is above 0.05^(1/r)
    scores, enrolled = np.arange(100.0), np.arange(100) >= 50
    assert at_least_in_one_run(scores, enrolled, 100, 0.0) == pytest.approx(special.logit(0.05 ** (1 / 100)))


# The worst case, repeated.


@pytest.fixture(scope="module")
def poisson():
    return audit.poisson_rounds()


def test_the_claim_of_poisson_sampling_stands(poisson):
    found = proven(poisson["alone"], audit.POISSON_LAWS["alone"])
    assert 0.5 * CLAIMED < found < CLAIMED


def test_the_claim_of_poisson_sampling_stands_where_all_others_send_the_opposite(poisson):
    assert 0.4 * CLAIMED < proven(poisson["opposed"], audit.POISSON_LAWS["opposed"]) < CLAIMED


@pytest.mark.parametrize("fault", ["mean", "half"])
def test_a_mean_over_those_heard_and_half_of_the_noise_are_caught(fault, poisson):
    assert proven(poisson[fault], audit.POISSON_LAWS[fault]) > CLAIMED + 0.3


def test_uniform_selection_has_not_the_privacy_of_poisson_sampling():
    assert CLAIMED + 0.3 < audit.replaced() < epsilon(Z, SMALL._replace(selection="uniform"), K)


@pytest.mark.nightly
def test_uniform_selection_has_it_not_even_for_zero_out():
    """1.73 is true of this pair."""
    assert CLAIMED + 0.05 < audit.zeroed(400_000) < 1.73


def test_the_claims_of_taking_turns_stand():
    for claimed, found in audit.in_turns().values():
        assert 0.5 * claimed < found < claimed


@pytest.mark.nightly
def test_the_table_says_which_claims_are_refuted(tmp_path, capsys):
    """In 2,000 runs two of the faults show; half of the noise takes the study's 20,000."""
    audit.experiment(common.SCALES["tiny"], tmp_path, ())
    lines = (tmp_path / "audit.md").read_text().splitlines()
    refuted = {line.split(" | ")[0][2:] for line in lines if line.endswith("| yes |")}
    assert {name for name in refuted if not name.startswith("fault")} == set()
    assert {"fault: the mean over who was heard", "fault: uniform by poisson's claim, C for -C"} <= refuted


def test_one_run_with_many_canaries():
    """200 canaries in random directions of 2000 dimensions, each of which takes part by a coin; the claim is epsilon 2.

    A fifth of the noise is caught. Of the right code one run proves little.
    """
    n, m, rounds, noise, guesses = 200, 40, 100, 4.255, (40, 80, 120)
    assert epsilon(noise, Releases(n, m, rounds), rounds) == pytest.approx(2.0, abs=0.01)

    @jax.jit
    def run(key, noise):
        directions, coins, draws, noises = jax.random.split(key, 4)
        aggregator = private(clip=1.0, noise=noise, clients_per_round=m)
        canaries = jax.random.normal(directions, (n, 2000))
        canaries /= jnp.linalg.norm(canaries, axis=1, keepdims=True)
        enrolled = jax.random.bernoulli(coins, 0.5, (n,))

        def step(total, k):
            ids, chosen = selection.poisson(draws, k, n, m)
            weights = jnp.where(chosen & enrolled[ids], 1.0, 0.0)
            messages = weights[:, None] * canaries[ids]
            found, _ = aggregator.update(messages, weights, aggregator.init(total), jax.random.fold_in(noises, k))
            return total + found, None

        total, _ = jax.lax.scan(step, jnp.zeros(2000), jnp.arange(rounds))
        return canaries @ total, enrolled

    for seed in range(3):
        right, wrong = (
            [np.asarray(x) for x in run(jax.random.key(seed), deviation)] for deviation in (noise, noise / 5)
        )
        bounds = [max(at_least_in_one_run(*x, r, 1e-5, LEVEL / len(guesses)) for r in guesses) for x in (right, wrong)]
        assert bounds[0] < 1.0 and bounds[1] > 2.1
