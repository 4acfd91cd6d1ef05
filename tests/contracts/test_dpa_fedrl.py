"""DPA-FedRL on the quadratic federation, against a replay in NumPy."""

import jax
import numpy as np
import pytest

from contracts.quadratic import LOCAL_LR, PROBLEM, federation, make
from contracts.test_fedhpd import Adam

pytestmark = pytest.mark.usefixtures("x64")
ROUNDS, STEPS = 4, 3


def replay(start, tasks, variant):
    """The clients' parameters [N, 3] after some rounds, the counts of their schedules, and where the server is."""
    x, adams = np.array(start), [Adam() for _ in start]
    batches, asked, answer = 0, np.arange(1.0, 4.0), None
    for _ in range(ROUNDS):
        if answer is not None:
            compared, mean = answer
            rate = LOCAL_LR * 0.5 ** (batches // 2)
            for i, adam in enumerate(adams):
                x[i] -= rate * adam(2 * (compared @ x[i] - mean) * compared)
            batches += variant == "published"
        for _ in range(STEPS):
            rate = LOCAL_LR * 0.5 ** (batches // 2)
            for i, adam in enumerate(adams):
                x[i] -= rate * adam(tasks["a"][i] * (x[i] - tasks["u"][i]))
            batches += 1
        mean = np.mean([asked @ one for one in x])
        after = 0.5 * asked + mean
        answer, asked = (after if variant == "published" else asked, mean), after
    return x, batches, asked


@pytest.mark.parametrize("variant", ["corrected", "published"])
def test_rounds_equal_a_replay(variant):
    simulation = federation(make("dpa_fedrl", variant=variant, lr_decay=0.5, lr_decay_every=2), n=3, m=3)
    state = simulation.init(jax.random.key(0))
    round = jax.jit(simulation.round)
    want, batches, asked = replay(state.clients["params"]["x"], jax.tree.map(np.asarray, state.tasks), variant)
    for _ in range(ROUNDS):
        state, metrics = round(state)
    np.testing.assert_allclose(state.clients["params"]["x"], want, rtol=1e-10, atol=1e-12)
    assert (state.clients["batches"] == batches).all()  # with one step a round, the published schedule is twice as fast
    assert (state.clients["adam"].count == ROUNDS * STEPS + ROUNDS - 1).all()
    np.testing.assert_allclose(state.server.private, asked, rtol=1e-10)
    assert metrics["comm/up_bytes"] == 3 * 8  # what one state is worth


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"variant 'new': one of corrected, published"):
        make("dpa_fedrl", variant="new")
    with pytest.raises(ValueError, match="which a server that acts needs"):
        make("dpa_fedrl", problem=PROBLEM._replace(walk=None))
