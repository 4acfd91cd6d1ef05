"""The values of a run: what a person can type, where it comes from, what is legal. Imports no jax."""

from fedjax_rl.config.options import CONFIGS, EXECUTION, Config, ConfigError, build, config_class, nearest

__all__ = ["CONFIGS", "EXECUTION", "Config", "ConfigError", "build", "config_class", "nearest"]
