"""fedjax_rl: federated and meta reinforcement learning, a federation as one batched axis of one compiled program.

Importing it imports no jax; each name of `__all__` is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "api.opened": "Run Runs",
    "api.registering": "register_aggregator register_algorithm register_environment register_policy",
    "api.training": "load sweep train",
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


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fedjax_rl' has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    found = module if _PLACES[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
