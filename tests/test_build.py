"""The server's rate by round, against the piecewise-linear formula."""

import numpy as np
import optax
import pytest

from fedjax_rl import build, config


@pytest.mark.parametrize(("share", "rounds"), [(0.5, 20), (1.0, 8), (0.3, 10)])
def test_server_rate_falls_to_a_tenth_at_the_end(share, rounds):
    made = build.server_rate(config.build("fmrl", {"rounds": rounds, "server_lr": 0.002, "server_lr_decay": share}))
    last = round(share * rounds)
    got = [float(made(k)) for k in range(rounds + 1)]
    want = [0.002 * (1 - 0.9 * max(0, k - (rounds - last)) / last) for k in range(rounds + 1)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert got[-1] == pytest.approx(0.0002, rel=1e-5)


def test_server_rate_stays_by_default():
    assert build.server_rate(config.build("fmrl", {"server_lr": 0.002})) == 0.002


def test_the_schedule_is_the_servers_step(x64):
    """Adam's first steps on a constant gradient are the rate itself, so the k-th step shows the k-th rate."""
    rate = build.server_rate(config.build("fmrl", {"rounds": 4, "server_lr": 0.01, "server_lr_decay": 1.0}))
    opt = optax.adam(rate)
    state, steps = opt.init(np.ones(1)), []
    for _ in range(4):
        updates, state = opt.update(np.ones(1), state)
        steps.append(-float(updates[0]))
    np.testing.assert_allclose(steps, 0.01 * (1 - 0.9 * np.arange(4) / 4), rtol=1e-6)
