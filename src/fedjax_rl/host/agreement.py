"""What the processes of a run must share: compared before anything is written. Imports no jax."""

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rl.host import lifeline
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.peer import processes

SEEN_S = 5.0  # for a file that one process has written to be seen by all


def same(facts: Mapping[str, Any]) -> None:
    """Compare what all processes must share.

    Raises:
      ConfigError: in all of them, with the first fact in which they differ.
    """
    line = difference(lifeline.gather(json.loads(json.dumps(list(facts.items())))))  # a tuple is a list for all of them
    if line:
        raise ConfigError(f"{line}; start all with the same command, environment and packages")


def difference(facts: list[list]) -> str:
    """The first fact in which another process differs from process 0; "" for none.

    >>> difference([[["seed", 1], ["clip", 0.2]], [["seed", 1], ["clip", 0.3]]])
    'processes 0 and 1 differ in clip: 0.2 and 0.3'
    """
    own, *others = map(dict, facts)
    for name in dict.fromkeys(name for some in (own, *others) for name in some):
        for number, other in enumerate(others, 1):
            if own.get(name) != other.get(name):
                return f"processes 0 and {number} differ in {name}: {own.get(name)} and {other.get(name)}"
    return ""


def same_directory(path: Path) -> None:
    """Make the directory and see that it is one and the same for all processes.

    Raises:
      ConfigError: in all of them, when one does not see what process 0 writes there.
    """
    line = lifeline.joined()
    if line is None:
        return
    is_writer = line.number == 0
    made = [p for p in (path, *path.parents) if is_writer and not p.exists()]
    mark = path / f".seen-{lifeline.gather(secrets.token_hex(8))[0]}"
    if is_writer:
        path.mkdir(parents=True, exist_ok=True)
        mark.touch()
    lifeline.gather(None)  # nobody looks before it is there: a network's file system would remember that it was not
    deadline = time.monotonic() + SEEN_S
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [number for number, seen in enumerate(lifeline.gather(mark.exists())) if not seen]
    if is_writer:
        mark.unlink()
        for directory in made if blind else ():
            directory.rmdir()
    if blind:
        who = f"{processes(blind)} of {line.count} and process 0"
        raise ConfigError(f"{who} do not see the same directory at {path}; choose one on a file system that all share")
