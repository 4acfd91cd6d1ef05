"""What each algorithm adds to the shared options: a class mirrors its factory, and an option is one line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fedjax_rl.config.gradients import FedPgBrConfig, NpgAdmmConfig, NpgConfig
from fedjax_rl.config.late import AFedPgConfig, FedAsyncConfig, LapgConfig, NigtConfig
from fedjax_rl.config.options import BIG, ChangeConfig, Config, ServerConfig
from fedjax_rl.config.rules import name, nearest, number, plain
from fedjax_rl.config.strategy import FedStrategyConfig
from fedjax_rl.config.values import DqnAvgConfig, QAvgConfig
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
    mu: float = number(0.01, 0, 10_000)  # weight of what holds the local steps near the round's first parameters
    # what that is: half the squared distance (parameters), or the divergence of the policies (kl)
    proximal: str = name("parameters", "parameters", "kl")


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(ServerConfig):
    """SCAFFOLD: FedAvg with control variates against the clients' drift."""

    algorithm: ClassVar[str] = "scaffold"
    refuses_stragglers: ClassVar[str] = "its variates are means over all local steps"
    refuses_loss: ClassVar[str] = "its server keeps the mean of the clients' variates"


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy == "table":
            raise ConfigError("policy = 'table': it has no output layer, so that no client would have a head; take mlp")


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
    # Adam of the distillation: its own, or that of the local steps
    distill_optimizer: str = name("own", "own", "shared")
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
    NpgConfig,
    NpgAdmmConfig,
    FedPgBrConfig,
    FedStrategyConfig,
    DqnAvgConfig,
    QAvgConfig,
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
