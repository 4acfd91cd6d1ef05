"""The digest beside a saved step: `<step>.digest.json` hashes all of the step's files, and itself.

Its record holds the step, the score (which decides the best one), the configuration's text and the files' hashes. It
knows nothing of what the files hold.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedjax_rl.host.files import write_text

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
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path.name} is damaged") from None
    if schema == SCHEMA and own_hash != _hash_of(record):
        raise ValueError(f"{path.name} is damaged")
    if schema not in (1, SCHEMA):
        raise ValueError(f"{path.name} has schema {schema!r}, this version reads 1 to {SCHEMA}")
    if not _is_whole(record) or record["step"] != step:  # a copy under another name is not that step
        raise ValueError(f"{path.name} is damaged, or not of step {step}")
    return record


def steps(directory: Path) -> list[int]:
    """Finished steps, newest first (a step without a digest is unfinished)."""
    return _numbers(path.name.removesuffix(".digest.json") for path in directory.glob("*.digest.json"))


def unfinished(directory: Path) -> list[int]:
    """Steps that have no digest, newest first: a save did not end, or the digest is lost."""
    done = steps(directory)
    return [step for step in _numbers(path.name for path in directory.glob("*")) if step not in done]


def saved_config(directory: Path) -> str:
    """The text of the configuration that the newest step with a sound digest was saved under; "" if none says so."""
    for step in steps(directory):
        try:
            return read(directory, step).get("config", "")
        except ValueError:
            continue
    return ""


def write(directory: Path, record: dict[str, Any]) -> None:
    """Write the record of a step (step, score, config, files), whole or not at all."""
    record = {**record, "schema": SCHEMA}
    text = json.dumps({**record, "sha256": _hash_of(record)}, indent=1)
    write_text(path_of(directory, record["step"]), text)


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


def _is_whole(record: dict[str, Any]) -> bool:
    score, files = record.get("score"), record.get("files")
    return (
        type(record.get("step")) is int
        and (score is None or type(score) in (int, float))
        and isinstance(record.get("config", ""), str)
        and isinstance(files, dict)
        and all(isinstance(value, str) for value in files.values())
    )


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)
