"""Options of clients that learn the values of actions. Imports neither jax nor mujoco."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fedjax_rl.config import trust
from fedjax_rl.config.options import BIG, SERVER_NAMES, ChangeConfig
from fedjax_rl.config.rules import ConfigError, name, number, registered

_OWN = (
    *("local_steps", "local_lr", "server", "server_lr", "server_half_life", "max_change_norm", "discount"),
    *("adapt_steps", "critic"),
)


@dataclass(frozen=True, kw_only=True)
class ValueConfig(ChangeConfig):
    """Options of the algorithms that learn values."""

    learns_values: ClassVar[bool] = True
    refuses_critic: ClassVar[str] = "which learns values"
    beyond_presets: ClassVar[tuple[str, ...]] = _OWN
    # task family with discrete actions: finite/random, gymnax/NAME, or your own as module:name
    env: str = registered("environment", "finite/random")
    server: str = name("sgd", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(1.0, 0, 1000, above=True)  # eta, rate of the server optimizer (1: the mean model)
    discount: float = number(0.9, 0, 1, above=True)  # discount factor of one step
    adapt_steps: int = number(0, 0, 100)  # adaptation steps in an evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        for why in self._misfits():
            raise ConfigError(why)

    def _misfits(self) -> Iterator[str]:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class DqnAvgConfig(ValueConfig):
    """DQNAvg: deep Q-learning with a replay on each client, the server averages the networks."""

    algorithm: ClassVar[str] = "dqn_avg"
    beyond_presets: ClassVar[tuple[str, ...]] = (*_OWN, "hidden", "activation", "init")
    hidden: tuple[int, ...] = number((128,), 1, 4096)  # widths of the hidden layers [units]
    activation: str = name("relu", "tanh", "relu")  # activation of the hidden layers: tanh or relu
    init: str = name("torch", "xavier", "torch")  # what the layers start from: xavier, or PyTorch's uniform
    local_steps: int = number(100, 1, 10_000)  # learning steps of a selected client in a round
    local_lr: float = number(0.001, 0, 100, above=True)  # rate of the learning steps
    local_optimizer: str = name("adam", "adam", "sgd")  # of the learning steps
    learn_every: int = number(1, 1, 10_000)  # environment steps before each learning step
    learn_after: int = number(32, 1, BIG)  # transitions that the replay must hold before anything is learned
    batch: int = number(16, 1, 100_000)  # transitions of a learning step
    capacity: int = number(1000, 1, BIG)  # transitions that a client's replay can hold
    sync: int = number(10, 1, BIG)  # local steps after which the model becomes the target (gradients: rounds)
    error: str = name("mse", "mse", "huber")  # of the values: the square, or Huber's with bound 1
    epsilon_start: float = number(1.0, 0, 1)  # first probability of an action drawn at random
    epsilon_decay: float = number(0.99, 0, 1, above=True)  # its factor after each learning step of the client
    epsilon_floor: float = number(0.05, 0, 1)  # the least that it becomes
    # what a client keeps from round to round: nothing (none), its replay, or also Adam's state and its running episode
    # (all)
    keep: str = name("none", "none", "replay", "all")
    # what is averaged: parameters after the learning steps; gradients, all at the model that was sent; or none, where
    # every client has a model of its own
    aggregate: str = name("parameters", "parameters", "gradients", "none")
    personal: str = name("none", "none", "head")  # head: every client has an output layer of its own
    head_lr: float = number(0.001, 0, 100, above=True)  # rate of that layer
    max_client_mb: float = number(8.0, 0, 1e6, above=True)  # the most that a client's replay may take [MB]

    @property
    def batches(self) -> int:
        """None: environments go on from learning step to learning step."""
        return 0

    def env_steps(self, horizon: int) -> int:
        """So many before each learning step."""
        return self.local_steps * self.learn_every

    def _misfits(self) -> Iterator[str]:
        if self.learn_after > self.capacity:
            yield f"learn_after = {self.learn_after}: must be at most capacity = {self.capacity}; lower it"
        taken = self.local_steps * self.learn_every
        if self.keep == "none" and self.learn_after > taken:
            yield (
                f"learn_after = {self.learn_after}: a round has {taken} environment steps, so nothing is learned; "
                "lower it, raise local_steps, or set keep = 'replay'"
            )
        if self.personal == "head":
            if self.aggregate != "parameters":
                yield f"personal = 'head': not with aggregate = {self.aggregate!r}; take parameters"
            if self.policy not in ("mlp", "categorical_mlp"):
                yield f"personal = 'head': policy = {self.policy!r} has no layer that is known as its head; take mlp"
        if self.aggregate == "gradients" and self.local_optimizer != "sgd":
            yield "aggregate = 'gradients': needs local_optimizer = 'sgd'; Adam may be the server's (server = 'adam')"


@dataclass(frozen=True, kw_only=True)
class QAvgConfig(ValueConfig):
    """QAvg: exact Q-iteration on each client's known process, the server averages the tables."""

    algorithm: ClassVar[str] = "q_avg"
    beyond_presets: ClassVar[tuple[str, ...]] = (*_OWN, "policy")
    policy: str = registered("policy", "table")  # the table of values
    local_steps: int = number(1, 1, 10_000)  # backups of a selected client in a round
    local_lr: float = number(1.0, 0, 1, above=True)  # rate of each backup (1: the whole of it)

    def _misfits(self) -> Iterator[str]:
        if self.policy != "table":
            yield f"policy = {self.policy!r}: q_avg learns a table; leave it out, or take dqn_avg"
        if self.attack in trust.WORLD_ATTACKS:
            yield f"attack = {self.attack!r}: q_avg's clients know their process and are not lied to; take sign_flip"
