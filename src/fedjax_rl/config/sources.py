"""Where a configuration's values come from besides the command line: a TOML file and the environment."""

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedjax_rl.config.algorithms import CONFIGS, build, config_class
from fedjax_rl.config.options import EXECUTION, LATER, Config
from fedjax_rl.config.rules import nearest
from fedjax_rl.host import registry
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.files import read_text

SCHEMA = 1
ENV_PREFIX = "FEDJAX_RL_"
LONGEST = 16_384
SEAL = "# sha256 of what decides the result: "


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
        return parsed(text, type(default))
    except ValueError:
        raise ConfigError(f"{variable} = {text!r}: must be {type(default).__name__}") from None


def parsed(text: str, kind: type) -> Any:
    """A value that was typed; a ValueError where it is not of its kind."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)


def read_toml(path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """(algorithm or None, values) of a TOML file, as `to_toml` writes it."""
    return _values(read_text(path), path)


def _values(text: str, where: object) -> tuple[str | None, dict[str, Any]]:
    if len(text) > LONGEST:  # reading some texts takes the square of their length
        raise ConfigError(f"{where} is not a configuration: it has {len(text):,} signs, at most {LONGEST:,} are read")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError) as error:  # a ValueError: a number of more digits than Python reads
        raise ConfigError(f"{where} is not TOML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{where} is not a configuration: it is nested too deeply") from None
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ConfigError(f"{where}: schema = {schema!r}: this version reads schema {SCHEMA}")
    algorithm = values.pop("algorithm", None)
    if algorithm is not None:
        try:
            config_class(str(algorithm))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return algorithm, values


def load(path: str | os.PathLike) -> Config:
    """The configuration of a run's own file, which holds every value."""
    return loads(read_text(path), path)


def loads(text: str, where: object = "the configuration") -> Config:
    """The configuration of a text written by `to_toml`.

    Raises:
      ConfigError: a value is missing that runs of all versions have, or the text is sealed and one was changed.
    """
    algorithm, values = _values(text, where)
    if algorithm is None:
        raise ConfigError(f"{where} is damaged: it names no algorithm")
    try:
        for item in fields(config_class(algorithm)):
            if kind := item.metadata["rule"].kind:
                registry.recall(kind, values.get(item.name))
        config = build(algorithm, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    missing = [item.name for item in fields(config) if item.name not in values.keys() | LATER]
    if missing:
        raise ConfigError(f"{where} is damaged: it lacks {', '.join(missing)}")
    seal = text.rpartition(SEAL)[2].strip() if SEAL in text else None
    if seal not in (None, _seal(algorithm, values)):
        raise ConfigError(f"{where} was changed: what decides the result is not what was written, by its sha256")
    return config


def to_toml(config: Config) -> str:
    """Every value as TOML; `load` of it gives the same configuration."""
    lines = [f"schema = {SCHEMA}", f'algorithm = "{config.algorithm}"']
    lines += [f"{item.name} = {literal(getattr(config, item.name))}" for item in fields(config)]
    return "\n".join(lines) + "\n"


def to_sealed_toml(config: Config) -> str:
    """The same with the hash of what decides the result, for a run's own file: `loads` notices a changed value."""
    text = to_toml(config)
    return f"{text}{SEAL}{_seal(config.algorithm, _values(text, 'the configuration')[1])}\n"


def _seal(algorithm: str, values: Mapping[str, Any]) -> str:
    """A hash of the values that a run keeps for ever: `rounds` may grow, and EXECUTION changes no number."""
    kept = sorted(f"{key} = {value!r}\n" for key, value in values.items() if key not in EXECUTION | {"rounds"})
    return hashlib.sha256("".join([algorithm, "\n", *kept]).encode()).hexdigest()


def literal(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, (str, bool)):
        return json.dumps(value)  # a JSON string is a basic string of TOML
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value)
