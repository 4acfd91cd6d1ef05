"""The values of a run: what a person can type, where it comes from, what is legal. Imports no jax."""

from fedjax_rl.config.algorithms import CONFIGS, build, config_class
from fedjax_rl.config.options import EXECUTION, Config
from fedjax_rl.config.rules import nearest
from fedjax_rl.host.exits import ConfigError

__all__ = ["CONFIGS", "EXECUTION", "Config", "ConfigError", "build", "config_class", "nearest"]
