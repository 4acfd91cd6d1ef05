"""An environment that workers can import: what it does depends on denormal numbers, and it fails when told to."""

import gymnasium
import numpy as np


class Fading(gymnasium.Env):
    """Shows a number that is denormal from its first step on, made large again, the sum of its actions, and PLACE.

    Args:
      fails: the step at which the episode of seed 12 raises; -1 for none.
    """

    PLACE = 0.0
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, fails=-1):
        self.fails = int(fails)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t, self.sum, self.number = seed, 0, self.np_random.random(), 2.0**-1022
        return self.look(), {}

    def look(self):
        return np.array([self.number * 2.0**1022, self.sum, self.PLACE], np.float32)

    def step(self, action):
        self.t, self.sum, self.number = self.t + 1, self.sum + action.sum(), self.number / 2
        if self.t == self.fails and self.seed == 12:
            raise ValueError(f"it fails\nin step {self.t}")
        return self.look(), self.number * 2.0**1022, self.t > 60 + self.seed % 7, False, {}


gymnasium.register("Fading-v0", Fading, max_episode_steps=100)
