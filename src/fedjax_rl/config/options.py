"""The configuration of a run: every value that a person can type, with its legal range.

Imports neither jax nor mujoco, so that a mistake is answered at once. A configuration mirrors its algorithm's factory:
the class `Config` holds what all algorithms share, a subclass adds what one of them needs. A new option is one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fedjax_rl.config import kinds, private, schedules, trust
from fedjax_rl.config.rules import ConfigError, checked, name, number, plain, registered

SERVER_NAMES = ("adam", "reddi", "as_printed", "yogi", "avgm", "rmsprop", "sgd")
BIG = 1_000_000_000
# What decides where or how often something is computed or kept, but no number of the result.
EXECUTION = frozenset(
    "client_batch save_every keep_every nan_dump eval_every eval_clients final_clients new_clients".split()
)
# Values that runs of earlier versions lack; what they did then is the default.
LATER = frozenset(
    "selection max_change_norm policy kinds init std advantages reduction aggregator critic value_coef entropy_coef "
    "keep_every nan_dump dropout stragglers server_half_life final_clients schedule in_flight buffer restart harmonic "
    "staleness staleness_power hinge_after fair wait_for speed speed_ratio delay_noise up_bandwidth down_bandwidth "
    "link_time max_time attack attack_share attack_strength byzantine clip_radius filter_sigma secagg_bits secagg_min "
    "secagg_range compress compress_ratio compress_bits compress_rank feedback client_momentum downlink_bits dp_clip "
    "dp_noise dp_epsilon dp_delta dp_noise_kind dp_quantile dp_population dp_where proximal".split()
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every value of a run, checked. This class has the options that all algorithms share.

    An algorithm has a subclass with its own options too. `dataclasses.replace` makes a changed copy. What each option
    means, with its unit, is in `fedjax-rl train ALGORITHM --help`.

    Raises:
      ConfigError: a value is not legal. The line names the option, the value and the legal range.

    >>> Config(rounds=3).rounds
    3
    >>> Config(rounds=0)
    Traceback (most recent call last):
    fedjax_rl.host.exits.ConfigError: rounds = 0: must be an integer, 1 to 1e+09; choose a value in that range
    """

    algorithm: ClassVar[str] = ""
    model: ClassVar[str] = "personal"  # what an evaluation starts from: the client's model, or the global one
    refuses_stragglers: ClassVar[str] = ""  # why no client may take fewer local steps; "" where it may
    refuses_async: ClassVar[str] = ""  # why its clients must wait for each other; "" where they need not
    refuses_critic: ClassVar[str] = ""  # why no value function may be learned with the policy; "" where one may
    refuses_loss: ClassVar[str] = ""  # why no message may count for less than was sent; "" where it may
    beyond_presets: ClassVar[tuple[str, ...]] = ()  # options whose default is the algorithm's, whatever the preset
    learns_values: ClassVar[bool] = False  # are values of actions learned, so that the largest one acts?
    learns_strategy: ClassVar[bool] = False  # do clients decide on numbers of their loss?
    learns_rates: ClassVar[bool] = False  # are the rates of adaptation learned, so that none can be given?
    keeps_models: ClassVar[bool] = False  # has every client a model of its own, so that these may be unlike?
    steps_are_adaptation: ClassVar[bool] = False  # are the local steps those of the adaptation, with its rate?

    # task family, see `fedjax-rl list` (also gymnax/, gym/, envpool/ and brax/NAME, or your own as module:name)
    env: str = registered("environment", "half_cheetah/direction")
    # physics: native (C MuJoCo, CPU), fused (compiled for the robot, CPU), mjx (on the device) or auto
    backend: str = name("auto", "auto", "native", "fused", "mjx")
    observation: str = name("maml", "maml", "compact")  # maml shows the torso's position, compact does not
    hidden: tuple[int, ...] = number((64, 64), 1, 4096)  # widths of the hidden layers, the critic's too [units]
    activation: str = name("tanh", "tanh", "relu")  # activation of the policy's hidden layers: tanh or relu
    kinds: str = plain("")  # clients of unlike networks, COUNTxWIDTH-WIDTH:ACTIVATION[:RATE], separated by commas
    init: str = name("xavier", "xavier", "torch")  # what the policy's layers start from: xavier, or PyTorch's uniform
    std: str = name("free", "free", "state")  # deviation of continuous actions: a free vector, or a head of the state
    # the policy's network: mlp (gaussian_mlp or categorical_mlp, as actions are), or your own as module:name
    policy: str = registered("policy", "mlp")
    # how messages become one: mean, or a rule that withstands malicious clients, see `fedjax-rl list`; or your own as
    # module:name
    aggregator: str = registered("aggregator", "mean")
    byzantine: float = number(0.2, 0, 0.499)  # share of malicious clients that the rule should withstand
    clip_radius: float = number(0.0, 0, 1e9)  # of centered_clip (0: the median distance)
    filter_sigma: float = number(1.0, 0, 1e9, above=True)  # bound on a gradient's deviation, of the filter fedpg_br
    secagg_bits: int = number(0, 0, 24)  # secure sums: bits of each number, as a fixed-point one (0: off; 20 is usual)
    secagg_range: float = number(0.0, 0, 1e9)  # secure sums: largest size of an entry; larger ones are cut
    secagg_min: int = number(0, 0, BIG)  # secure sums: clients that must be heard (0: two thirds of those selected)
    # what malicious clients do, see `fedjax-rl list`: to their messages (sign_flip, boost, ...) or in their world
    # (reward_flip, ...)
    attack: str = name("none", "none", *trust.MESSAGE_ATTACKS, *trust.WORLD_ATTACKS)
    attack_share: float = number(0.1, 0, 1)  # share of the clients that are malicious, the same for the whole run
    attack_strength: float = number(1.0, 0, 1e6)  # factor of the attack (alie: z, 0 for the published one)
    seed: int = number(0, 0, 2**31 - 1)  # every random draw follows from it
    num_clients: int = number(200, 1, BIG)  # clients in the federation
    # clients selected in each round; asynchronous: arrivals computed together at most (0: chosen from the speeds)
    clients_per_round: int = number(40, 0, BIG)
    # how clients of a synchronous round are selected: uniform, stratified (one client of each id modulo
    # clients_per_round), by_kind (stratified, in the order of the kinds: for `kinds`), poisson (each by itself, so many
    # in the mean) or cyclic (in groups, one after the other)
    selection: str = name("uniform", "uniform", "stratified", "by_kind", "poisson", "cyclic")
    rounds: int = number(500, 1, BIG)  # communication rounds in all; asynchronous: a round is one or more updates
    episodes: int = number(20, 1, 100_000)  # episodes in each batch of a client
    local_steps: int = number(5, 1, 10_000)  # local gradient steps of a selected client in a round
    local_lr: float = number(0.001, 0, 100, above=True)  # beta, rate of the local steps (SGD; distilling clients: Adam)
    # alpha, rate of the adaptation step (where it is learned: its first value)
    inner_lr: float = number(0.1, 0, 100)
    discount: float = number(0.99, 0, 1, above=True)  # discount factor of one step
    gae_lambda: float = number(1.0, 0, 1)  # lambda of generalised advantage estimation
    clip: float = number(0.2, 0, 10, above=True)  # epsilon of the ratio surrogate, which alone is clipped
    surrogate: str = name("ratio", "ratio", "log", "dice")  # of the adaptation and local steps: ratio, log or dice
    # linear: fitted to each batch; none: plain returns; or a neural value function, federated with the policy or local
    # to each client
    critic: str = name("linear", "linear", "none", "federated", "local")
    # advantages: normalised by their mean and deviation, whitened (the same with n - 1, as in much REINFORCE), or plain
    advantages: str = name("normalised", "normalised", "whitened", "plain")
    reduction: str = name("mean", "mean", "sum")  # of the loss: mean over all steps, or sum over an episode's steps
    value_coef: float = number(0.5, 0, 1000)  # weight of the neural value function's error in the loss
    entropy_coef: float = number(0.0, 0, 100)  # weight of the policy's entropy in the objective
    client_batch: int = number(0, 0, BIG)  # clients computed at a time (0: 1 on CPU, all on GPU and TPU)
    eval_every: int = number(0, 0, BIG)  # rounds between evaluations (0: at the end only)
    eval_clients: int = number(0, 0, BIG)  # clients in those evaluations (0: all)
    final_clients: int = number(0, 0, BIG)  # clients in the last evaluation (0: all)
    adapt_steps: int = number(3, 0, 100)  # adaptation steps in an evaluation
    new_clients: int = number(100, 0, BIG)  # clients never trained on, in the last evaluation
    save_every: int = number(10, 1, BIG)  # rounds between checkpoints
    keep_every: int = number(0, 0, BIG)  # rounds between checkpoints that are never deleted (0: newest and best only)
    nan_dump: int = number(0, 0, 1000)  # clients whose numbers ceased to be finite to write down for `replay`, at most
    dropout: float = number(0.0, 0, 1)  # probability that a selected client drops out of the round
    stragglers: float = number(0.0, 0, 1)  # probability that a selected client takes fewer local steps, weighing less
    schedule: str = name("sync", "sync", "async")  # sync: a round waits for its clients; async: each at its own time
    in_flight: int = number(0, 0, BIG)  # asynchronous: clients at work at a time (0: all)
    buffer: int = number(0, 0, BIG)  # asynchronous: arrivals for an update of the server (0: clients_per_round)
    # asynchronous, who has arrived: begins anew at once (now) or at the next update; abort: as now, but an update ends
    # everybody's work, and all begin anew
    restart: str = name("now", "now", "update", "abort")
    # asynchronous, with abort: an update is due when the harmonic mean of the clients' arrivals is so many of N
    # (Malenia's M; the buffer is then the most there can be; 0: a full buffer)
    harmonic: int = number(0, 0, BIG)
    # asynchronous: what a message is multiplied by, from its age in updates: constant, polynomial or hinge
    staleness: str = name("constant", "constant", "polynomial", "hinge")
    staleness_power: float = number(0.5, 0, 1000)  # a of (1 + age)^-a, or of the hinge 1 / (a (age - b) + 1)
    hinge_after: float = number(6.0, 0, BIG)  # b, age from which the hinge falls [updates]
    fair: bool = plain(False)  # asynchronous: multiply messages so that fast clients count no more than slow ones
    wait_for: int = number(0, 0, BIG)  # synchronous: clients after whose arrival a round ends (0: all selected)
    # how long a job takes each client [units of virtual time]: equal, linear, uniform, lognormal, sqrt, one_slow or
    # alternate (by even and odd numbers)
    speed: str = name("equal", *schedules.SPEED_NAMES)
    speed_ratio: float = number(4.0, 1, 1000)  # slowest time over fastest; of lognormal the spread; equal, sqrt: unused
    # noise of each job's time, of mean 1 (lognormal: of median 1): none, lognormal, shifted, exponential or pareto
    delay_noise: str = name("none", *schedules.NOISE_NAMES)
    up_bandwidth: float = number(0.0, 0, 1e30)  # of each client's link up [bytes a unit of virtual time] (0: no limit)
    down_bandwidth: float = number(0.0, 0, 1e30)  # of each client's link down [bytes a unit of time] (0: no limit)
    link_time: float = number(0.0, 0, 1000)  # extra time of each message [times the time of the client's job]
    max_time: float = number(0.0, 0, BIG)  # virtual time after which a run ends, if its rounds do not before (0: none)

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, checked(item.name, getattr(self, item.name), item))
        if self.kinds and not self.keeps_models:
            raise ConfigError(
                f"kinds: not for {self.algorithm}, which sends models; take fedhpd, dpa_fedrl, independent or "
                "fedstrategy"
            )
        schedules.refuse(self)
        trust.refuse(self)
        if hasattr(self, "dp_clip"):
            private.refuse(self)
        lanes = ("clients_per_round",) if self.schedule == "sync" else ()
        for small in (*lanes, "eval_clients", "final_clients", "client_batch"):
            if getattr(self, small) > self.num_clients:
                raise ConfigError(
                    f"{small} = {getattr(self, small)}: must be at most num_clients = {self.num_clients}; "
                    f"lower {small} or raise num_clients"
                )
        if self.kinds:
            self._refuse_kinds()
        if self.critic in ("federated", "local") and self.refuses_critic:
            raise ConfigError(
                f"critic = {self.critic!r}: not for {self.algorithm}, {self.refuses_critic}; take linear or none"
            )
        if self.critic == "local" and not isinstance(self, ChangeConfig):
            raise ConfigError(f"critic = 'local': not for {self.algorithm}, whose message is no change of a model")
        why = "local_steps = 1 cannot be fewer" if self.local_steps == 1 else self.refuses_stragglers
        if self.stragglers and why:
            raise ConfigError(f"stragglers = {self.stragglers}: not for this {self.algorithm}: {why}; set it to 0")

    def _refuse_kinds(self) -> None:
        """A ConfigError for what clients of unlike networks cannot do."""
        kinds.block(kinds.parse(self.kinds), self.num_clients, self.clients_per_round)
        if self.critic in ("federated", "local"):
            raise ConfigError(f"critic = {self.critic!r}: not with kinds; take linear or none")
        if self.clients_per_round < self.num_clients and self.selection != "by_kind":
            raise ConfigError(f"selection = {self.selection!r}: with kinds and few clients a round, take by_kind")

    @property
    def has_clock(self) -> bool:
        """Is virtual time kept?"""
        return schedules.has_clock(self)

    def is_over(self, row: Mapping[str, Any]) -> bool:
        """Is a round, by its line of metrics, the last: of the rounds, or the first at max_time?"""
        return row["round"] >= self.rounds or self.is_out_of_time(row)

    def is_out_of_time(self, row: Mapping[str, Any]) -> bool:
        """Is a round, by its line of metrics, at max_time?"""
        return bool(self.max_time and (row.get("clock/time") or 0) >= self.max_time)

    @property
    def batches(self) -> int:
        """The number of batches, of E episodes each, that a selected client samples in a round."""
        return 1

    def env_steps(self, horizon: int) -> int:
        """The number of environment steps of a selected client in a round."""
        return self.batches * self.episodes * horizon


@dataclass(frozen=True, kw_only=True)
class SendingConfig(Config):
    """Options of the algorithms whose message is a change or a gradient, which may be sent in fewer bytes."""

    # what a client sends of its message: all (none), its largest entries (top_k), random ones (random_k), all in few
    # bits (quantise), their signs (sign), matrices of low rank (low_rank), or the largest in few bits (top_k+quantise)
    compress: str = name("none", *trust.COMPRESSORS)
    compress_ratio: float = number(0.01, 0, 1, above=True)  # share of the entries that top_k and random_k send
    compress_bits: int = number(8, 2, 16)  # bits of an entry of quantise
    compress_rank: int = number(2, 1, 64)  # rank of low_rank
    # what a client does with what it did not send: forgets it (none), adds it to the next message (classic), or sends
    # differences (ef21); auto: classic for top_k, sign, low_rank and top_k+quantise, none for the others
    feedback: str = name("auto", "auto", "none", "classic", "ef21")
    # decay of the running mean that a client sends of its messages (0: off)
    client_momentum: float = number(0.0, 0, 0.9999)
    downlink_bits: int = number(0, 0, 16)  # bits of a number that the server sends (0: all 32)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Config):
    """Options of the algorithms whose server absorbs messages."""

    server: str = name("adam", *SERVER_NAMES)  # server optimizer, see `fedjax-rl list`
    server_lr: float = number(0.001, 0, 1000, above=True)  # eta, rate of the server optimizer
    server_half_life: float = number(0.0, 0, BIG)  # optimizer steps in which server_lr falls to half (0: it stays)


@dataclass(frozen=True, kw_only=True)
class ChangeConfig(ServerConfig, SendingConfig):
    """Options of the algorithms whose message is the change of a model."""

    max_change_norm: float = number(0.0, 0, 1e9)  # norm to which a client clips its change before sending (0: no clip)
    dp_clip: float = number(0.0, 0, 1e9)  # differential privacy: norm to which each change is clipped (0: off)
    dp_noise: float = number(0.0, 0, 1e6)  # privacy: noise multiplier, the deviation of the sum's noise [times dp_clip]
    # privacy: the epsilon that all rounds together may cost; it decides dp_noise (0: dp_noise is given)
    dp_epsilon: float = number(0.0, 0, 1e6)
    dp_delta: float = number(1e-5, 0, 1, above=True)  # privacy: the delta that goes with epsilon, below 1 / num_clients
    # of it, noise drawn anew in each round (white), or such that rounds cancel each other's (banded, for cyclic)
    dp_noise_kind: str = name("white", "white", "banded")
    dp_quantile: float = number(0.0, 0, 1)  # privacy: share of the changes that an adapting clip leaves (0: it stays)
    dp_population: int = number(0, 0, BIG)  # privacy: clients that the noise is for, more than simulated (0: as many)
    dp_where: str = name("central", "central", "local")  # privacy: who adds the noise: the server, or every client
