"""What each algorithm adds to the shared options: a class mirrors its factory, and an option is one line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fedjax_rl.config.options import BIG, SERVER_NAMES, ChangeConfig, Config, ServerConfig
from fedjax_rl.config.rules import name, nearest, number, plain
from fedjax_rl.host import registry
from fedjax_rl.host.exits import ConfigError


@dataclass(frozen=True, kw_only=True)
class FmrlConfig(ChangeConfig):
    """FMRL (Liu, Xu, Wu, Jiang 2024): clients train the point from which one step of adaptation is best."""

    algorithm: ClassVar[str] = "fmrl"
    order: str = name("second", "first", "second")  # second: exact meta-gradient, first: without the curvature

    @property
    def batches(self) -> int:
        """One before the adaptation step, one after."""
        return 2


@dataclass(frozen=True, kw_only=True)
class FedAvgConfig(ChangeConfig):
    """FedAvg: local policy-gradient steps on each client, the server absorbs the mean change."""

    algorithm: ClassVar[str] = "fedavg"


@dataclass(frozen=True, kw_only=True)
class FedProxConfig(ChangeConfig):
    """FedProx: FedAvg whose local steps are pulled towards the round's first parameters."""

    algorithm: ClassVar[str] = "fedprox"
    mu: float = number(0.01, 0, 10_000)  # weight of the proximal term mu/2 |theta - theta_k|^2


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(ServerConfig):
    """SCAFFOLD: FedAvg with control variates against the clients' drift."""

    algorithm: ClassVar[str] = "scaffold"
    refuses_stragglers: ClassVar[str] = "its variates are means over all local steps"


@dataclass(frozen=True, kw_only=True)
class PerFedAvgConfig(FmrlConfig):
    """Per-FedAvg: FMRL with fresh batches in every local step."""

    algorithm: ClassVar[str] = "per_fedavg"

    @property
    def batches(self) -> int:
        """Two for every local step."""
        return 2 * self.local_steps


@dataclass(frozen=True, kw_only=True)
class PFedMeConfig(ChangeConfig):
    """pFedMe: personal models near the global one, by Moreau envelopes; evaluations start from the global model."""

    algorithm: ClassVar[str] = "pfedme"
    model: ClassVar[str] = "global"
    personal_steps: int = number(5, 1, 10_000)  # steps of the personal model in each local step
    personal_lr: float = number(0.01, 0, 100, above=True)  # rate of those steps
    penalty: float = number(15.0, 0, 10_000)  # weight of penalty/2 |v - w|^2 (the paper's lambda)


@dataclass(frozen=True, kw_only=True)
class FedRepConfig(ChangeConfig):
    """FedRep: a shared body, and on every client a head of its own (output layers and log_std)."""

    algorithm: ClassVar[str] = "fedrep"
    head_steps: int = number(5, 1, 10_000)  # local steps on the head, before those on the body


@dataclass(frozen=True, kw_only=True)
class DittoConfig(ChangeConfig):
    """Ditto: FedAvg, and a personal model on every client that is held near the global one."""

    algorithm: ClassVar[str] = "ditto"
    personal_lr: float = number(0.01, 0, 100, above=True)  # rate of the personal model's steps
    penalty: float = number(1.0, 0, 10_000)  # weight of penalty/2 |v - theta_k|^2 (the paper's lambda)

    @property
    def batches(self) -> int:
        """One for the global model, one for the personal one."""
        return 2


@dataclass(frozen=True, kw_only=True)
class ReptileConfig(ChangeConfig):
    """Reptile: towards where several local steps lead, each on a fresh batch."""

    algorithm: ClassVar[str] = "reptile"
    steps_are_adaptation: ClassVar[bool] = True

    @property
    def batches(self) -> int:
        """One for every local step."""
        return self.local_steps


@dataclass(frozen=True, kw_only=True)
class MetaSgdConfig(FmrlConfig):
    """Meta-SGD: FMRL that also learns and federates the adaptation rate of every parameter."""

    algorithm: ClassVar[str] = "meta_sgd"
    learns_rates: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class IndependentConfig(Config):
    """No federation: every client learns alone from the same start."""

    algorithm: ClassVar[str] = "independent"
    keeps_models: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FedHpdConfig(Config):
    """FedHPD: clients, also of unlike networks, learn alone and distil from each other on public states."""

    algorithm: ClassVar[str] = "fedhpd"
    keeps_models: ClassVar[bool] = True
    refuses_async: ClassVar[str] = "all its clients answer each other within a round"
    refuses_stragglers: ClassVar[str] = "its optimisers keep their state"
    public_states: str = plain("")  # file of the states that clients distil on, made by `fedjax-rl public-states`
    # consensus: distil from the mean policy; placebo: the same steps without a gradient; none: every client alone
    distill: str = name("consensus", "consensus", "placebo", "none")
    distill_optimizer: str = name(
        "own", "own", "shared"
    )  # Adam of the distillation: its own, or that of the local steps
    loops: int = number(5, 1, 1000)  # how often each part of the public states is distilled on in a round
    parts: int = number(2, 1, 1000)  # parts of the public states, each a step of distillation
    lr_decay: float = number(0.95, 0, 1, above=True)  # factor of the rates after every lr_decay_every batches
    lr_decay_every: int = number(100, 1, BIG)  # batches of a client after which its rate is lowered

    @property
    def batches(self) -> int:
        """One for every local step."""
        return self.local_steps


@dataclass(frozen=True, kw_only=True)
class DpaFedRlConfig(Config):
    """DPA-FedRL: clients, also of unlike networks, follow a server that acts by the mean of their policies."""

    algorithm: ClassVar[str] = "dpa_fedrl"
    keeps_models: ClassVar[bool] = True
    refuses_async: ClassVar[str] = "all its clients answer each other within a round"
    refuses_stragglers: ClassVar[str] = "its optimisers keep their state"
    variant: str = name("corrected", "corrected", "published")  # published: compares with the policy in the next state
    lr_decay: float = number(0.95, 0, 1, above=True)  # factor of the rates after every lr_decay_every batches
    lr_decay_every: int = number(100, 1, BIG)  # batches of a client after which its rate is lowered

    @property
    def batches(self) -> int:
        """One for every local step."""
        return self.local_steps


@dataclass(frozen=True, kw_only=True)
class NigtConfig(Config):
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
    lookahead: bool = plain(True)  # sample ahead of the model, by as much as a late gradient will count for less
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
    beyond_presets: ClassVar[tuple[str, ...]] = ("local_steps", "server", "server_lr")
    local_steps: int = number(1, 1, 1)  # a gradient
    server: str = name("sgd", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(0.1, 0, 1000, above=True)  # eta, rate of the server optimizer
    patience: float = number(0.1, 0, 1000)  # weight of the last steps in what a client holds back (xi)
    noise_factor: float = number(2.0, 0, 1e9)  # weight of the gradient's noise in what a client holds back

    @property
    def batches(self) -> int:
        """Two, whose difference tells the noise."""
        return 2


_CLASSES = (
    FmrlConfig,
    FedAvgConfig,
    FedProxConfig,
    ScaffoldConfig,
    PerFedAvgConfig,
    PFedMeConfig,
    FedRepConfig,
    DittoConfig,
    ReptileConfig,
    MetaSgdConfig,
    IndependentConfig,
    FedHpdConfig,
    DpaFedRlConfig,
    AFedPgConfig,
    NigtConfig,
    FedAsyncConfig,
    LapgConfig,
)
CONFIGS: dict[str, type[Config]] = {c.algorithm: c for c in _CLASSES}


def config_class(algorithm: str) -> type[Config]:
    """The configuration class of an algorithm; a guest's is made from its factory's signature.

    Raises:
      ConfigError: there is no such algorithm, or a guest's cannot be imported or has options that cannot be typed.
    """
    if algorithm in CONFIGS:
        return CONFIGS[algorithm]
    known = [*registry.names("algorithm"), *registry.guests("algorithm")]
    if algorithm not in known and not registry.PLACE.fullmatch(algorithm):
        raise ConfigError(f"unknown algorithm {algorithm!r}{nearest(algorithm, known)}; known: {', '.join(known)}")
    from fedjax_rl.config.guests import config_of

    return config_of(algorithm, registry.find("algorithm", algorithm))


def build(algorithm: str, *layers: Mapping[str, Any]) -> Config:
    """A configuration from layers of values; a later layer wins. Unknown keys are refused."""
    cls = config_class(algorithm)
    legal = {item.name for item in fields(cls)}
    values: dict[str, Any] = {}
    for layer in layers:
        for key in layer:
            if key not in legal:
                raise ConfigError(f"unknown key {key!r} for {algorithm}{_key_hint(key, legal)}")
        values.update(layer)
    return cls(**values)


def _key_hint(key: str, legal: Iterable[str]) -> str:
    owners = [a for a, c in CONFIGS.items() if key in {item.name for item in fields(c)}]
    return f" (it is an option of {', '.join(owners)})" if owners else nearest(key, legal)
