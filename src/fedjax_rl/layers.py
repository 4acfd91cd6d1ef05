"""Where a configuration's values come from besides the command line: a TOML file and the environment."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedjax_rl.config import CONFIGS, Config, ConfigError, build, config_class, nearest

SCHEMA = 1
ENV_PREFIX = "FEDJAX_RL_"


def environment_layer(algorithm: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The values that environment variables give: FEDJAX_RL_SERVER_LR=0.002 sets server_lr."""
    environ = os.environ if environ is None else environ
    kinds = {item.name: item.default for item in fields(config_class(algorithm))}
    layer = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key in kinds:
            layer[key] = _parsed(variable, text, kinds[key])
        elif not any(key in {item.name for item in fields(c)} for c in CONFIGS.values()):
            names = [ENV_PREFIX + k.upper() for k in kinds]
            raise ConfigError(f"unknown environment variable {variable}{nearest(variable, names)}")
    return layer


def _parsed(variable: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.replace(",", " ").split())
        return type(default)(text)
    except ValueError:
        raise ConfigError(f"{variable} = {text!r}: must be {type(default).__name__}") from None


def read_toml(path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """(algorithm or None, values) of a TOML file, as `to_toml` writes it."""
    try:
        with open(path, encoding="utf-8") as file:
            return _values(file.read(), path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _values(text: str, where: object) -> tuple[str | None, dict[str, Any]]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ConfigError(f"{where}: schema = {schema!r}: this version reads schema {SCHEMA}")
    algorithm = values.pop("algorithm", None)
    if algorithm is not None:
        config_class(str(algorithm))
    return algorithm, values


def load(path: str | os.PathLike) -> Config:
    """The configuration that a file written by `to_toml` holds."""
    algorithm, values = read_toml(path)
    return build(algorithm or "fmrl", values)


def loads(text: str) -> Config:
    """The configuration of a text written by `to_toml`."""
    algorithm, values = _values(text, "the configuration")
    return build(algorithm or "fmrl", values)


def to_toml(config: Config) -> str:
    """Every value as TOML; `load` of it gives the same configuration."""
    lines = [f"schema = {SCHEMA}", f'algorithm = "{config.algorithm}"']
    lines += [f"{item.name} = {_toml(getattr(config, item.name))}" for item in fields(config)]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value)
