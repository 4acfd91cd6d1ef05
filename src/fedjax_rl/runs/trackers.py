"""Loggers for TensorBoard and Weights & Biases, both optional extras; a resumed run stays one curve."""

import importlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.files import write_text

WANDB_ID = "wandb.json"  # in a run's directory: the id under which its numbers are kept


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"--log {extra} needs {module}; install it with: pip install 'fedjax-rl[{extra}]'") from None


class TensorBoard:
    """A logger for TensorBoard: curves over environment steps, in the run's directory under tensorboard/.

    Raises:
      ConfigError: tensorboardX is not installed.
    """

    def __init__(self) -> None:
        self._module = _needed("tensorboardX", "tensorboard")

    def start(self, config: Mapping[str, Any], directory: Path) -> None:
        """Open a file of events beside those of earlier processes of the run."""
        self._writer = self._module.SummaryWriter(str(directory / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key} = {value!r}" for key, value in config.items()))

    def log(self, record: Mapping[str, float | None], round: int, env_steps: int) -> None:
        """One point of every curve."""
        for name, value in record.items():
            if value is not None:
                self._writer.add_scalar(name, value, env_steps)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """A logger for Weights & Biases: curves over rounds, offline unless told otherwise. A sweep's runs are one group.

    Args:
      options: of `wandb.init`, such as project, entity or mode="online".

    Raises:
      ConfigError: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._module, self._options = _needed("wandb", "wandb"), options

    def start(self, config: Mapping[str, Any], directory: Path) -> None:
        """Begin, or take up, the run whose id the directory keeps."""
        kept = directory / WANDB_ID
        known = json.loads(kept.read_text()) if kept.exists() else {"id": secrets.token_hex(4)}
        write_text(kept, json.dumps(known) + "\n")
        given = {"mode": "offline", "project": "fedjax_rl", "name": directory.name, "group": directory.parent.name}
        own = {"dir": str(directory), "config": dict(config), "resume": "allow", "reinit": "create_new"}
        self._run = self._module.init(**{**given, **self._options, **known, **own})

    def log(self, record: Mapping[str, float | None], round: int, env_steps: int) -> None:
        """One point of every curve."""
        self._run.log({**record, "env_steps": env_steps}, step=round)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """End the run; its summary has the means after each step of adaptation."""
        for kind, of in summary.items():
            self._run.summary.update({f"{kind}/adapt_{j}": mean for j, mean in enumerate(of["mean"])})
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}


def chosen(names: tuple[str, ...]) -> tuple[Any, ...]:
    """The loggers of these names, made anew for each run.

    Raises:
      ConfigError: a name is unknown, or its library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--log {name}: must be one of {', '.join(TRACKERS)}")
        TRACKERS[name]()
    return tuple(TRACKERS[name] for name in names)
