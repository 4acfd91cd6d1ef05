"""Options of the algorithms whose clients arrive late, or are silent. Imports neither jax nor mujoco."""

from dataclasses import dataclass
from typing import ClassVar

from fedjax_rl.config.options import BIG, SERVER_NAMES, Config, SendingConfig, ServerConfig
from fedjax_rl.config.rules import name, number, plain


@dataclass(frozen=True, kw_only=True)
class NigtConfig(SendingConfig):
    """NIGT: normalised policy gradients with momentum and look-ahead, by Rennala's or Malenia's schedule."""

    algorithm: ClassVar[str] = "nigt"
    beyond_presets: ClassVar[tuple[str, ...]] = ("clients_per_round", "local_steps", "gae_lambda")
    clients_per_round: int = number(0, 0, BIG)  # as for all; here 0, chosen, is the default
    local_steps: int = number(1, 1, 10_000)  # 1: the gradient; the change of more steps is a direction too
    gae_lambda: float = number(0.95, 0, 1)  # lambda of generalised advantage estimation
    schedule: str = name("async", "sync", "async")  # sync: a round waits for its clients; async: each at its own time
    restart: str = name("abort", "now", "update", "abort")  # as for all; here abort is the default
    buffer: int = number(20, 0, BIG)  # asynchronous: arrivals for an update of the server (0: clients_per_round)
    momentum: float = number(0.1, 0, 1, above=True)  # weight of a new gradient in the direction of a step
    step_length: float = number(2**-5, 0, 1000, above=True)  # of the server, whatever the gradient's length


@dataclass(frozen=True, kw_only=True)
class AFedPgConfig(NigtConfig):
    """AFedPG: every client's gradient is a step of the server at once, sampled ahead of the model."""

    algorithm: ClassVar[str] = "afedpg"
    restart: str = name("now", "now", "update", "abort")  # begin anew at once, at the next update, or all at an update
    buffer: int = number(1, 0, BIG)  # asynchronous: arrivals for an update of the server (0: clients_per_round)
    momentum_power: float = number(0.0, 0, 10)  # p of the momentum max(momentum, (k + 1)^-p) (0: it stays)
    length_power: float = number(0.0, 0, 10)  # q of the step length step_length (k + 1)^-q
    lookahead: bool = plain(True)  # sample ahead, as far as a late gradient counts for less (no-lookahead: at it)
    meta: str = name("none", "none", "first", "second")  # order of a meta-gradient in place of the gradient

    @property
    def batches(self) -> int:
        """One, and with a meta-gradient one more."""
        return 1 if self.meta == "none" else 2


@dataclass(frozen=True, kw_only=True)
class FedAsyncConfig(Config):
    """FedAsync: the server mixes each local model that arrives into its own, the less the older it is."""

    algorithm: ClassVar[str] = "fedasync"
    beyond_presets: ClassVar[tuple[str, ...]] = ("clients_per_round",)
    clients_per_round: int = number(0, 0, BIG)  # as for all; here 0, chosen, is the default
    schedule: str = name("async", "sync", "async")  # sync: a round waits for its clients; async: each at its own time
    buffer: int = number(1, 0, BIG)  # asynchronous: arrivals for an update of the server (0: clients_per_round)
    # asynchronous: what a message is multiplied by, from its age in updates: constant, polynomial or hinge
    staleness: str = name("polynomial", "constant", "polynomial", "hinge")
    mixing: float = number(0.6, 0, 1, above=True)  # alpha, share of a local model that is not old
    mu: float = number(0.005, 0, 10_000)  # weight of the proximal term mu/2 |theta - theta_k|^2


@dataclass(frozen=True, kw_only=True)
class LapgConfig(ServerConfig):
    """LAPG: policy gradients in which a client is silent while its gradient has not changed by more than noise."""

    algorithm: ClassVar[str] = "lapg"
    refuses_stragglers: ClassVar[str] = "it sends one gradient"
    refuses_loss: ClassVar[str] = "its server keeps the mean of what the clients sent last"
    beyond_presets: ClassVar[tuple[str, ...]] = ("local_steps", "server", "server_lr", "server_half_life")
    local_steps: int = number(1, 1, 1)  # a gradient
    local_lr: float = number(0.001, 0, 100, above=True)  # not used: a gradient is sent
    server: str = name("sgd", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(0.1, 0, 1000, above=True)  # eta, rate of the server optimizer
    patience: float = number(0.1, 0, 1000)  # weight of the last steps in what a client holds back (xi)
    noise_factor: float = number(2.0, 0, 1e9)  # weight of the gradient's noise in what a client holds back

    @property
    def batches(self) -> int:
        """Two, whose difference tells the noise."""
        return 2
