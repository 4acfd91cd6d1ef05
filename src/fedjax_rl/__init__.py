"""fedjax_rl: federated and meta reinforcement learning, a federation as one batched axis of one compiled program.

Importing it imports no jax; each name of `__all__` is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "api.opened": "Run",
    "api.registering": "register_aggregator register_algorithm register_environment register_policy",
    "api.training": "Runs load sweep train",
    "config": "Config ConfigError",
    "config.guests": "Range",
    "envs": "Env EnvSpec EnvState make_env",
    "federation.simulate": "Simulation State make_simulation run_rounds",
    "host.exits": "NoCheckpoint",
    "rl.policies": "Policy",
    "rl.problem": "make_problem",
    "runs.loop": "Diverged",
    "runs.recorder": "Callback Logger",
    "runs.trackers": "TensorBoard WandB",
    "types": "Aggregate Aggregator Algorithm Problem Server Stats Upload",
}
_PLACES = {name: f"fedjax_rl.{module}" for module, names in _MODULES.items() for name in names.split()}
_PLACES |= {"parts": "fedjax_rl.algorithms.parts", "tasks": "fedjax_rl.envs.tasks", "testing": "fedjax_rl.testing"}
__all__ = sorted(_PLACES)

if TYPE_CHECKING:  # the same for type checkers, which run nothing
    from fedjax_rl import testing as testing
    from fedjax_rl.algorithms import parts as parts
    from fedjax_rl.api.opened import Run as Run
    from fedjax_rl.api.registering import register_aggregator as register_aggregator
    from fedjax_rl.api.registering import register_algorithm as register_algorithm
    from fedjax_rl.api.registering import register_environment as register_environment
    from fedjax_rl.api.registering import register_policy as register_policy
    from fedjax_rl.api.training import Runs as Runs
    from fedjax_rl.api.training import load as load
    from fedjax_rl.api.training import sweep as sweep
    from fedjax_rl.api.training import train as train
    from fedjax_rl.config import Config as Config
    from fedjax_rl.config import ConfigError as ConfigError
    from fedjax_rl.config.guests import Range as Range
    from fedjax_rl.envs import Env as Env
    from fedjax_rl.envs import EnvSpec as EnvSpec
    from fedjax_rl.envs import EnvState as EnvState
    from fedjax_rl.envs import make_env as make_env
    from fedjax_rl.envs import tasks as tasks
    from fedjax_rl.federation.simulate import Simulation as Simulation
    from fedjax_rl.federation.simulate import State as State
    from fedjax_rl.federation.simulate import make_simulation as make_simulation
    from fedjax_rl.federation.simulate import run_rounds as run_rounds
    from fedjax_rl.host.exits import NoCheckpoint as NoCheckpoint
    from fedjax_rl.rl.policies import Policy as Policy
    from fedjax_rl.rl.problem import make_problem as make_problem
    from fedjax_rl.runs.loop import Diverged as Diverged
    from fedjax_rl.runs.recorder import Callback as Callback
    from fedjax_rl.runs.recorder import Logger as Logger
    from fedjax_rl.runs.trackers import TensorBoard as TensorBoard
    from fedjax_rl.runs.trackers import WandB as WandB
    from fedjax_rl.types import Aggregate as Aggregate
    from fedjax_rl.types import Aggregator as Aggregator
    from fedjax_rl.types import Algorithm as Algorithm
    from fedjax_rl.types import Problem as Problem
    from fedjax_rl.types import Server as Server
    from fedjax_rl.types import Stats as Stats
    from fedjax_rl.types import Upload as Upload
else:

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module 'fedjax_rl' has no attribute {name!r}")
        module = importlib.import_module(_PLACES[name])
        found = module if _PLACES[name].endswith(f".{name}") else getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
