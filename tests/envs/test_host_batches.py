"""The host's side of the seam: which step of which batch a call is, and whose turn it is."""

import threading
import time

import numpy as np
import pytest
from test_host import Walks

from fedjax_rl.envs import host


def started(rows=2):
    """(host, state's arrays after a reset of `rows`, a step's other arguments)."""
    made = host.Host("walks", lambda seeds, tasks: Walks(8 + 9 * (seeds // 9), tasks))
    seeds = np.arange(rows, dtype=np.uint32)
    _, ticket = made.reset(seeds, np.zeros(rows, np.float32))
    return made, ticket, seeds, (np.zeros(rows, np.float32), np.zeros((rows, 1), np.float32))


def test_a_step_that_is_repeated_lost_or_reordered_raises():
    made, ticket, seeds, rest = started()
    *_, t = made.step(ticket, np.zeros(2, np.int32), seeds, *rest)
    assert t.tolist() == [1, 1]
    for wrong in (0, 2):
        with pytest.raises(RuntimeError, match=f"^walks: step {wrong} of batch 1 came where step 1 was due"):
            made.step(ticket, np.full(2, wrong, np.int32), seeds, *rest)
    with pytest.raises(RuntimeError, match="step 1 of batch 1"):
        made.step(ticket, t, seeds[::-1], *rest)
    assert made.step(ticket, np.array([0, 1], np.int32), seeds, *rest)[-1].tolist() == [2, 2]  # row 0 was over


def test_more_batches_than_are_kept_raise_and_those_that_are_over_go_first():
    made, ticket, seeds, rest = started()
    zero = np.zeros(2, np.int32)
    for _ in range(host.MOST_BATCHES - 1):
        _, last = made.reset(seeds, rest[0])
    t = zero
    for _ in range(9):
        *_, done, t = made.step(last, t, seeds, *rest)
    assert done.all()
    made.reset(seeds, rest[0])  # takes the place of the one that is over
    *_, t = made.step(ticket, zero, seeds, *rest)
    oldest = made.running[int(ticket[0]), 2]
    made.reset(seeds, rest[0])
    assert oldest.batch.closed
    with pytest.raises(RuntimeError, match=f"^walks: more than {host.MOST_BATCHES} batches of episodes at a time"):
        made.step(ticket, t, seeds, *rest)


def test_threads_take_turns():
    """Devices call side by side: no two batches are begun or stepped at once, and each gets its own numbers."""
    inside, met, found = [], [], {}

    class Alone(Walks):
        def __init__(self, *given):
            self.meet(lambda: super(Alone, self).__init__(*given))

        def step(self, *given):
            return self.meet(lambda: super(Alone, self).step(*given))

        def meet(self, do):
            inside.append(self)
            met.append(len(inside))
            time.sleep(1e-3)
            done = do()
            inside.remove(self)
            return done

    made, rest = host.Host("walks", Alone), (np.zeros(3, np.float32), np.ones((3, 1), np.float32))

    def work(name):
        seeds, total = np.full(3, 8 + 9 * name, np.uint32), 0.0
        _, ticket = made.reset(seeds, rest[0])
        t = np.zeros(3, np.int32)
        for _ in range(9):
            _, reward, _, t = made.step(ticket, t, seeds, *rest)
            total += reward.sum()
        found[name] = total

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), 3 * 45.0) and set(met) == {1} and len(met) == 40
