"""Options of natural policy gradients, and of a server that samples too. Imports neither jax nor mujoco."""

from dataclasses import dataclass
from typing import ClassVar

from fedjax_rl.config.options import BIG, SERVER_NAMES, ChangeConfig, SendingConfig, ServerConfig
from fedjax_rl.config.rules import ConfigError, name, number


@dataclass(frozen=True, kw_only=True)
class NpgConfig(ChangeConfig):
    """NPG: natural policy-gradient steps in a trust region on each client, the server takes their mean."""

    algorithm: ClassVar[str] = "npg"
    refuses_critic: ClassVar[str] = "whose Fisher matrix knows the policy alone"
    beyond_presets: ClassVar[tuple[str, ...]] = (
        *("local_steps", "local_lr", "server", "server_lr", "server_half_life", "max_change_norm"),
    )
    local_steps: int = number(1, 1, 10_000)  # steps of a client on the same batch, each with a trust region of its own
    local_lr: float = number(1.0, 0, 100, above=True)  # share of the step that the trust region allows
    server: str = name("sgd", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(1.0, 0, 1000, above=True)  # eta, rate of the server optimizer (1: the mean model)
    damping: float = number(0.1, 0, 1e6)  # added to the Fisher matrix's diagonal [nats]
    max_kl: float = number(0.01, 0, 1000, above=True)  # KL of the policies before and after a local step [nats]
    max_step: float = number(10.0, 0, 1e9, above=True)  # the most that a natural gradient is multiplied by
    cg_steps: int = number(10, 1, 1000)  # steps of conjugate gradients, a Fisher product each


@dataclass(frozen=True, kw_only=True)
class NpgAdmmConfig(ServerConfig):
    """FedNPG-ADMM: the federation's natural policy gradient, by one iteration of ADMM a round among all clients."""

    algorithm: ClassVar[str] = "npg_admm"
    refuses_critic: ClassVar[str] = "whose Fisher matrix knows the policy alone"
    refuses_async: ClassVar[str] = "its iteration needs all clients in every round"
    refuses_stragglers: ClassVar[str] = "it solves for one direction"
    beyond_presets: ClassVar[tuple[str, ...]] = (
        *("clients_per_round", "local_steps", "server", "server_lr", "server_half_life"),
    )
    clients_per_round: int = number(0, 0, BIG)  # all of num_clients, which is also what 0 stands for
    local_steps: int = number(1, 1, 1)  # an iteration
    local_lr: float = number(0.001, 0, 100, above=True)  # not used: a direction is sent
    server: str = name("sgd", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(0.5, 0, 1000, above=True)  # eta, rate of the server optimizer
    penalty: float = number(0.1, 0, 1e6, above=True)  # rho, how strongly clients are held to the consensus [nats]
    cg_steps: int = number(10, 1, 1000)  # steps of conjugate gradients, a Fisher product each

    def __post_init__(self) -> None:
        if self.clients_per_round == 0:
            object.__setattr__(self, "clients_per_round", self.num_clients)
        super().__post_init__()
        for key, value in (("clients_per_round", self.num_clients), ("wait_for", 0), ("dropout", 0.0)):
            if getattr(self, key) != value:
                why = "npg_admm needs all clients in every round"
                raise ConfigError(f"{key} = {getattr(self, key)}: {why}; set it to {value}")


@dataclass(frozen=True, kw_only=True)
class FedPgBrConfig(ServerConfig, SendingConfig):
    """FedPG-BR: gradients that the server filters, and variance-reduced steps on episodes of its own."""

    algorithm: ClassVar[str] = "fedpg_br"
    refuses_async: ClassVar[str] = "its server compares gradients at one model"
    refuses_stragglers: ClassVar[str] = "it sends one gradient"
    beyond_presets: ClassVar[tuple[str, ...]] = ("local_steps", "server_half_life")
    local_steps: int = number(1, 1, 1)  # a gradient
    local_lr: float = number(0.001, 0, 100, above=True)  # not used: a gradient is sent
    inner_batch: int = number(4, 1, 100_000)  # b, episodes of each step of the server
    # mean of the geometric number of the server's steps (published: (episodes + inner_batch) / inner_batch)
    inner_steps: float = number(5.0, 1, 10_000)
    # the server stops where the mean ratio of its first policy and the present one is further from 1
    ratio_tolerance: float = number(0.005, 0, 1e9)
