"""Records: the lines of metrics.jsonl and eval.jsonl, written one at a time and read with every fault named.

A crash cuts off the last line, and only that: an unterminated last line that is no record was never finished. Any other
line that is not what this program writes is a fault, and whoever reads decides what that means. A line ends with its
own CRC-32, so that no changed digit passes for a result; lines of earlier versions have none.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rl.host import output
from fedjax_rl.host.exits import ConfigError

METRICS, EVAL, PARTICIPANTS = "metrics.jsonl", "eval.jsonl", "participants.jsonl"
EVALUATED = ("eval", "eval_malicious", "eval_new")  # kinds of clients of which an evaluation has returns
SECONDS, SPEED = "sys/round_s", "sys/env_steps_per_s"  # of a round, of which a report makes environment steps
SEAL = ', "crc32": "'
Row = dict[str, Any]


class Records(NamedTuple):
    """The sound records of a file in the order of their rounds, and a line "FILE line K: what" for each fault."""

    rows: list[Row]
    faults: list[str]

    def covered(self) -> int:
        """The last round k for which the rounds 1, ..., k all have a record."""
        rounds, k = {row["round"] for row in self.rows}, 0
        while k + 1 in rounds:
            k += 1
        return k


def append(path: Path, record: Mapping[str, Any], *, sync: bool = False) -> None:
    """Add one line of JSON and flush it, with `sync` to the disk; numbers that are not finite become null."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(text([output.for_json(record)]))
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read(path: Path) -> Records:
    """All records of a file; none where there is no file."""
    rows: list[Row] = []
    faults: list[str] = []
    check = CHECKS[path.name]
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            check(row)
            _in_order(row, rows)
        except ValueError as error:
            if number < len(lines):
                faults.append(f"{path.name} line {number}: {error}")
        else:
            if row not in rows[-1:]:
                rows.append(row)
    return Records(sorted(rows, key=lambda row: row["round"]), faults)


def sound(path: Path) -> list[Row]:
    """The records of a file without a fault.

    Raises:
      ConfigError: it has one; the first is named.
    """
    rows, faults = read(path)
    if faults:
        raise ConfigError(f"{faults[0]}; fedjax-rl resume {path.parent} mends what can be mended")
    return rows


def text(rows: list[Row]) -> str:
    """Records as a file holds them."""
    return "".join(f"{_sealed(json.dumps(row))}\n" for row in rows)


def _sealed(line: str) -> str:
    """A record's line with its CRC-32 as the last key."""
    return f'{line[:-1]}{SEAL}{zlib.crc32(line.encode()):08x}"}}'


def _row(line: bytes) -> Row:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of a record")

    try:
        row = json.loads(line.decode(), parse_constant=refuse)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except json.JSONDecodeError:
        raise ValueError("is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("is not a record")
    if row.pop("crc32", None) is not None and _sealed(line.decode().rpartition(SEAL)[0] + "}") != line.decode().strip():
        raise ValueError("is not what was written, by its crc32")
    if type(row.get("round")) is not int or row["round"] < 1:
        raise ValueError(f"round = {row.get('round')!r}: must be an integer from 1")
    return row


def _in_order(row: Row, rows: list[Row]) -> None:
    """Rounds ascend; an evaluation between rounds and the last one may share a round."""
    if not rows or row == rows[-1]:
        return
    last, is_last_one = rows[-1]["round"], row.get("final") is True and rows[-1].get("final") is False
    if row["round"] < last or (row["round"] == last and not is_last_one):
        raise ValueError(f"round {row['round']} after round {last}")


def _check_metrics(row: Row) -> None:
    for name, value in row.items():
        if value is not None and not _is_number(value):
            raise ValueError(f"{name} = {value!r}: must be a number or null")
    if not _is_number(row.get(SECONDS)) or row[SECONDS] <= 0:
        raise ValueError(f"{SECONDS} is missing or not positive")
    if not _is_number(row.get(SPEED)) or row[SPEED] < 0:  # 0: nobody was drawn
        raise ValueError(f"{SPEED} is missing or negative")


def _check_evaluation(row: Row) -> None:
    if type(row.get("final")) is not bool:
        raise ValueError("final is missing")
    for kind in EVALUATED:
        name = f"{kind}/returns"
        table: Any = row.get(name, None if kind == "eval" else [[None]])
        is_table = isinstance(table, list) and table and all(isinstance(line, list) and line for line in table)
        if not is_table or len({len(line) for line in table}) > 1:
            raise ValueError(f"{name} is missing or not a table")
        if not all(value is None or _is_number(value) for line in table for value in line):
            raise ValueError(f"{name} holds something else than numbers")


def _check_participants(row: Row) -> None:
    for name, ids in row.items():
        if name != "round" and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
            raise ValueError(f"{name} = {ids!r}: must be a list of client numbers")


CHECKS: dict[str, Callable[[Row], None]] = {
    METRICS: _check_metrics,
    EVAL: _check_evaluation,
    PARTICIPANTS: _check_participants,
}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
