"""Gymnasium's episodes in other processes: the same numbers, errors and ends as here."""

import os
import signal
import subprocess
import sys
import traceback

import jax
import numpy as np
import pytest

from fedjax_rl.envs import divided, make_env
from fedjax_rl.envs import gym as gym_module
from fedjax_rl.host import episodes
from fedjax_rl.host.asked import GYMNASIUM, Prefix, asked
from fedjax_rl.host.workers import ask
from fedjax_rl.rl.policies import mlp
from fedjax_rl.rl.rollout import make_rollout

gymnasium = pytest.importorskip("gymnasium")
SEEDS = np.arange(11, 18, dtype=np.uint32)
HELD = (eval, "len(__import__('fedjax_rl.host.episodes', fromlist=['']).__dict__['_held'])")


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    """Every batch pays, so that it has two workers."""
    monkeypatch.setattr(divided, "ASK_S", 1e-9)
    monkeypatch.setattr(divided, "LEAST_S", 0.0)
    monkeypatch.setattr(divided, "cores", lambda: 3)


def beginner(name, monkeypatch):
    """What begins the episodes of an environment."""
    with monkeypatch.context() as patch:
        patch.setattr(gym_module, "host_env", lambda spec, begin, *rest: begin)
        own, horizon, ranges = asked(f"gym/{name}", "gym/", Prefix("", GYMNASIUM))
        return gym_module._gym.__wrapped__(own, horizon, tuple(ranges.items()))


def begun(begin, whole=False):
    """Seven new episodes, whose tasks differ."""
    rows = begin.trial[0] + 0.125 * np.arange(len(SEEDS), dtype=np.float32)[:, None]
    return episodes.Episodes(begin.make, SEEDS, rows) if whole else begin(SEEDS, rows)


def steps(batch, begin, most=80):
    """What a batch shows, pays and ends; of rows that are over, nothing."""
    draw, live, told = np.random.default_rng(0), np.ones(len(SEEDS), bool), [batch.obs.copy()]
    actions = begin.trial[1].reshape(-1, begin.trial[1].shape[-1])
    for _ in range(most):
        obs, reward, done = batch.step(draw.choice(actions, len(SEEDS)), live)
        told += [obs[live], reward[live], done[live]]
        live = live & ~done
    batch.close()
    return told


def assert_same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["LunarLander-v3?gravity=-12:-8", "BipedalWalker-v3", "_fading:Fading-v0"])
def test_a_divided_batch_has_the_numbers_of_a_whole_one(name, monkeypatch):
    if "Fading" not in name:
        pytest.importorskip("Box2D")
    begin = beginner(name, monkeypatch)
    batch = begun(begin)
    assert isinstance(batch, divided.Divided) and [len(SEEDS[share]) for share in batch.shares] == [3, 2, 2]
    told = steps(batch, begin)
    assert_same(told, steps(begun(begin, whole=True), begin))
    assert len({len(x) for x in told}) > 2 or "Walker" in name  # episodes end at different times
    assert ask(batch.others, [HELD] * 2, lambda: None)[1] == [0, 0]


def test_what_xla_flushes_to_zero_is_zero_in_workers_too(monkeypatch):
    env = make_env("gym/_fading:Fading-v0")
    policy = mlp(env.spec, hidden=(4,))
    roll = jax.jit(make_rollout(env, policy, 7))
    params, shares, whole = policy.init(jax.random.key(0)), [], divided.Divided
    monkeypatch.setattr(divided, "Divided", lambda *given: shares.append(whole(*given)) or shares[-1])
    out = roll(params, 0.0, jax.random.key(1))
    monkeypatch.setattr(divided, "cores", lambda: 1)
    assert_same(jax.tree.leaves(out), jax.tree.leaves(roll(params, 0.0, jax.random.key(1))))
    assert len(shares) == 1 and out.mask.sum() > 400
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(out.obs[:, :60, 0], np.tile(np.arange(60) == 0, (7, 1)))


def test_what_only_this_process_has_stays_in_it(monkeypatch):
    from _fading import Fading

    monkeypatch.setattr(Fading, "PLACE", 1.0)
    assert type(begun(beginner("Fading-v0", monkeypatch))) is episodes.Episodes
    monkeypatch.setattr(Fading, "PLACE", 0.0)
    gymnasium.register("Mine-v0", lambda: Fading(), max_episode_steps=9)
    begin = beginner("Mine-v0", monkeypatch)
    batch = begun(begin)
    del gymnasium.registry["Mine-v0"]
    assert type(batch) is episodes.Episodes


def test_an_error_in_a_worker_reads_as_it_does_here(monkeypatch):
    begin = beginner("_fading:Fading-v0?fails=55:56", monkeypatch)
    with pytest.raises(ValueError, match="it fails\nin step 55") as here:
        steps(begun(begin, whole=True), begin)
    with pytest.raises(RuntimeError) as there:
        steps(begun(begin), begin)
    text = str(there.value)
    assert text.endswith("".join(traceback.format_exception_only(here.value)).rstrip())
    assert f'{os.sep}_fading.py", line ' in text and text.startswith("Traceback")


def test_a_worker_that_is_killed_is_said_and_replaced(monkeypatch):
    begin = beginner("_fading:Fading-v0", monkeypatch)
    batch, other = begun(begin), begun(begin)
    os.kill(batch.others[1].process.pid, signal.SIGKILL)
    for lost in (batch, other):
        with pytest.raises(RuntimeError, match=r"^a process that works for this one has ended \(exit code -9\)$"):
            steps(lost, begin)
        lost.close()
    assert_same(steps(begun(begin), begin), steps(begun(begin, whole=True), begin))


def test_workers_end_with_the_process_that_is_killed_and_not_with_its_signals():
    """They hold its standard error, which is read to its end."""
    source = """if True:
        import os, signal, sys
        from fedjax_rl.host.signals import ENDING
        from fedjax_rl.host.workers import ask, workers
        both = workers(2)
        ask(both, [(print, "loud"), (abs, 0)], lambda: None)
        for worker in both:
            for number in ENDING:
                os.kill(worker.process.pid, number)
        print(ask(both, [(abs, -1), (abs, -2)], lambda: "jax" in sys.modules), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-9, "(False, [1, 2])\n", "loud\n")
