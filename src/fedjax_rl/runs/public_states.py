"""The states on which clients distil from each other: a file of numbers that all of them know."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rl.config import ConfigError
from fedjax_rl.envs import EnvSpec

_MARK = re.compile(r".*-([0-9a-f]{8})\.npy")  # ends in a digest of the numbers: another file of that name is noticed


def digest(states: np.ndarray) -> str:
    """Eight signs that tell one set of states [S, O] float32 from another."""
    return hashlib.sha256(np.ascontiguousarray(states, np.float32).tobytes()).hexdigest()[:8]


def of(config: Any, spec: EnvSpec) -> np.ndarray | None:
    """The states [S, O] that a configuration, which has these options, names; None where its clients do not distil.

    Raises:
      ConfigError: there are none, or not of this environment.
    """
    if config.distill != "consensus":
        return None
    if not config.public_states:
        raise ConfigError(
            f"public_states: none given; `fedjax-rl public-states --env {config.env}` makes a file; then give "
            "--public-states FILE"
        )
    return load(config.public_states, spec.observation_size, config.parts)


def load(path: str, observation_size: int, parts: int) -> np.ndarray:
    """The states [S, O] of a file.

    Raises:
      ConfigError: there is no such file, it holds something else, or it is not what its name says.
    """
    try:
        states = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"public_states = {path!r}: cannot be read ({type(error).__name__}); `fedjax-rl public-states` makes one"
        ) from None
    if states.ndim != 2 or states.shape[1] != observation_size or states.dtype.kind != "f":
        raise ConfigError(
            f"public_states = {path!r}: holds {states.dtype} {list(states.shape)}; it must be floats "
            f"[S, {observation_size}], of this environment"
        )
    if len(states) == 0 or len(states) % parts or not np.isfinite(states).all():
        raise ConfigError(
            f"public_states = {path!r}: its {len(states)} states must be finite and divide by parts = {parts}"
        )
    mark = _MARK.fullmatch(Path(path).name)
    if mark and mark[1] != digest(states):
        raise ConfigError(
            f"public_states = {path!r}: was changed: its name says {mark[1]}, its states {digest(states)}"
        )
    return np.asarray(states, np.float32)
