"""The digest beside a saved step: `<step>.digest.json` hashes all of the step's files, and itself.

Its record holds the step, the score (which decides the best one), the configuration's text and the files' hashes. It
knows nothing of what the files hold.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 2  # 1 had no hash of the digest itself and no configuration; it is read for ever


def path_of(directory: Path, step: int) -> Path:
    """Where the digest of a step is."""
    return directory / f"{step}.digest.json"


def read(directory: Path, step: int) -> dict[str, Any]:
    """The record of a step, or a ValueError that says what is wrong with it."""
    path = path_of(directory, step)
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    try:
        record = json.loads(path.read_bytes())
        schema, own_hash = record["schema"], record.pop("sha256", None)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path.name} is damaged") from None
    if schema == SCHEMA and own_hash != _hash_of(record):
        raise ValueError(f"{path.name} is damaged")
    if schema not in (1, SCHEMA):
        raise ValueError(f"{path.name} has schema {schema!r}, this version reads 1 to {SCHEMA}")
    return record


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write the record of a step (step, score, config, files), whole or not at all."""
    record = {**record, "schema": SCHEMA}
    text = json.dumps({**record, "sha256": _hash_of(record)}, indent=1)
    _write_atomically(path_of(directory, record["step"]), text)


def verify(directory: Path, step: int) -> None:
    """A ValueError naming the first file of a step that is not as it was written."""
    record, have = read(directory, step), hashes(directory / str(step))
    for name in sorted(record["files"].keys() | have.keys()):
        if record["files"].get(name) != have.get(name):
            raise ValueError(f"{name} is missing or damaged, by {step}.digest.json")


def hashes(path: Path) -> dict[str, str]:
    """The sha256 of every file below a directory, by relative path."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
