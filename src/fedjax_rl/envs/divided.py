"""Gymnasium's episodes divided over the cores: this process steps a share of a batch, and workers step the others."""

import itertools
import math
import pickle

import numpy as np

from fedjax_rl.host import episodes
from fedjax_rl.host.cores import cores
from fedjax_rl.host.workers import Worker, ask, workers

LEAST_S = 2e-3  # of work in a step, below which waiting for others takes what they save (measured on two cores)
ASK_S = 1.5e-4  # what each worker costs this process in a step: to ask it, and to hear it

_numbers = itertools.count()


class Divided:
    """B episodes: k, k + n, k + 2 n, ... in process k of n, of which this one is number 0."""

    def __init__(self, others: list[Worker], packed: bytes, seeds: np.ndarray, rows: np.ndarray):
        self.others, self.number = others, next(_numbers)
        self.shares = [slice(k, None, len(others) + 1) for k in range(len(others) + 1)]
        calls = [(episodes.begin, self.number, packed, seeds[share], rows[share]) for share in self.shares[1:]]
        here = self.shares[0]
        self.own, shown = ask(others, calls, lambda: episodes.Episodes(pickle.loads(packed), seeds[here], rows[here]))
        self.obs = np.empty((len(seeds), self.own.obs.shape[1]), np.float32)
        for share, obs in zip(self.shares, [self.own.obs, *shown], strict=True):
            self.obs[share] = obs

    def step(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        calls = [(episodes.step, self.number, actions[share], live[share]) for share in self.shares[1:]]
        here = self.shares[0]
        own, told = ask(self.others, calls, lambda: self.own.step(actions[here], live[here]))
        reward, done = np.empty(len(live), np.float32), np.empty(len(live), bool)
        for share, (obs, paid, over) in zip(self.shares, [own, *told], strict=True):
            self.obs[share], reward[share], done[share] = obs, paid, over
        return self.obs, reward, done

    def close(self) -> None:
        self.own.close()
        if all(other.is_there() for other in self.others):  # one that is not has ended the others
            ask(self.others, [(episodes.close, self.number)] * len(self.others), lambda: None)


class Beginner:
    """(seeds [B], tasks [B, ...]) -> B new episodes, divided where that pays and changes no number.

    Args:
      make: task -> an object.
      sent: the same, for workers.
      pace: seconds of a step.
      trial: (task, actions) of the trial that workers have to repeat. One that cannot, since only this process has the
        environment, or has changed it, is not asked for episodes.
    """

    def __init__(self, make: episodes.Make, sent: episodes.Make, pace: float, trial: tuple[np.ndarray, np.ndarray]):
        self.make, self.pace, self.trial = make, pace, trial
        self.agreeing: set[Worker] = set()
        try:
            self.packed = pickle.dumps(sent)
        except Exception:  # it has its own ways
            self.packed = b""

    def __call__(self, seeds: np.ndarray, rows: np.ndarray) -> Divided | episodes.Episodes:
        work = len(seeds) * self.pace
        shares = min(cores(), math.isqrt(int(work / ASK_S)))  # the n of the least work / n + n * ASK_S
        others = workers(shares - 1) if shares > 1 and work > LEAST_S and self.packed else []
        if others and self.do_agree(others):
            return Divided(others, self.packed, seeds, rows)
        return episodes.Episodes(self.make, seeds, rows)

    def do_agree(self, others: list[Worker]) -> bool:
        """Has a trial in each worker the numbers that it has here? If not, workers are not asked again."""
        new = [other for other in others if other not in self.agreeing]
        if not new:
            return True
        call = self.packed, *self.trial
        try:
            mine, theirs = ask(new, [(episodes.tried, *call)] * len(new), lambda: episodes.tried(*call))
        except RuntimeError:  # even to import it has ended one
            mine, theirs = None, []
        if mine is None or not all(told is not None and episodes.same(mine, told) for told in theirs):
            self.packed = b""
            return False
        self.agreeing |= {*new}
        return True
