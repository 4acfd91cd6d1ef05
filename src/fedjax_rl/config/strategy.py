"""Options of clients that share how they learn. Imports neither jax nor mujoco."""

from dataclasses import dataclass
from typing import Any, ClassVar

from fedjax_rl.config import kinds
from fedjax_rl.config.options import SERVER_NAMES, ChangeConfig
from fedjax_rl.config.rules import ConfigError, name, number


@dataclass(frozen=True, kw_only=True)
class FedStrategyConfig(ChangeConfig):
    """fedstrategy: clients, also of unlike networks, share a map from what they can do to how they learn."""

    algorithm: ClassVar[str] = "fedstrategy"
    keeps_models: ClassVar[bool] = True
    learns_rates: ClassVar[bool] = True
    learns_strategy: ClassVar[bool] = True
    refuses_stragglers: ClassVar[str] = "how many steps a client takes is its own (client_steps)"
    beyond_presets: ClassVar[tuple[str, ...]] = (
        *("local_steps", "inner_lr", "entropy_coef", "gae_lambda", "server", "server_lr", "server_half_life"),
        *("max_change_norm", "critic", "reduction", "kinds"),
    )
    local_steps: int = number(1, 1, 10_000)  # the most steps that a client takes on a batch
    local_lr: float = number(0.001, 0, 100, above=True)  # not used: the strategies decide
    inner_lr: float = number(0.03, 0, 100, above=True)  # alpha, rate of every role with which the strategies start
    entropy_coef: float = number(0.01, 0, 100, above=True)  # weight of the policy's entropy, likewise
    gae_lambda: float = number(0.95, 1e-6, 0.999999)  # lambda of generalised advantage estimation, likewise
    server: str = name("adam", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(0.01, 0, 1000, above=True)  # eta, rate of the server optimizer
    # a map from capability to strategy (map), one strategy for all (strategy), a map of each client's own that is never
    # sent (none), or the first strategy, which stays (fixed)
    sharing: str = name("map", "map", "strategy", "none", "fixed")
    # of a client: normalised by the gradient's size in each layer, so that a rate means the same in every network; or
    # plain
    step: str = name("normalised", "normalised", "plain")
    # episodes of clients 0, 1, ... and then from the front, at most `episodes` (none: `episodes` for all)
    client_episodes: tuple[int, ...] = number((), 1, 100_000)
    # likewise steps, of clients in groups as long as client_episodes, at most local_steps (none: local_steps for all)
    client_steps: tuple[int, ...] = number((), 1, 10_000)

    @property
    def batches(self) -> int:
        """One before a client's steps; one after, for the gradient of its strategy."""
        return 1 if self.sharing == "fixed" else 2

    def __post_init__(self) -> None:
        super().__post_init__()
        most: tuple[tuple[str, tuple[int, ...], str], ...] = (
            ("client_episodes", self.client_episodes, "episodes"),
            ("client_steps", self.client_steps, "local_steps"),
        )
        for key, values, limit in most:
            if values and max(values) > getattr(self, limit):
                raise ConfigError(f"{key} = {list(values)}: at most {limit} = {getattr(self, limit)}; raise {limit}")
        only: tuple[tuple[str, tuple[Any, ...], str], ...] = (
            ("critic", ("linear", "none"), "strategies decide on advantages, which a critic's values do not follow"),
            ("reduction", ("mean",), "clients have unlike numbers of episodes"),
        )
        for key, legal, why in only:
            if getattr(self, key) not in legal:
                raise ConfigError(f"{key} = {getattr(self, key)!r}: not for fedstrategy: {why}; take {legal[0]}")
        if any(kind.rate is not None for kind in kinds.parse(self.kinds)):
            raise ConfigError(f"kinds = {self.kinds!r}: the strategy decides on rates; leave the kinds' rates out")
