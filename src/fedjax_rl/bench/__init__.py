"""What is measured and how: `fedjax-rl bench NAME`. Every function gives rows with versions and device.

Tests never assert seconds; these never assert anything. One benchmark at a time: they use every core.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fedjax_rl.bench.rows import Row

WHERE = {
    "physics": "physics",
    "update": "update",
    "round": "round",
    "run": "run",
    "memory": "run",
    "scaling": "scaling",
    "compile": "compile",
    "peers": "peers",
}
FACTS = ("versions", "device", "devices", "cores", "git")


def bench(name: str, env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """The rows of one benchmark."""
    measure: Callable[..., list[Row]] = getattr(import_module(f"fedjax_rl.bench.{WHERE[name]}"), name)
    return measure(env, backend, sizes, repeats)


def show(rows: list[Row], *, as_json: bool, out: Path | None) -> None:
    """Print the rows; with `out`, also write them as JSON, replacing nothing."""
    if out:
        with open(out, "x") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")
    if as_json:
        print(json.dumps(rows))
        return
    for found in rows:
        for key, value in found.items():
            if key not in FACTS:
                print(f"{key:<40}{_text(value)}")
        print()
    if rows:
        last = rows[-1]
        print(f"{last['device']}, {last['cores']} cores, jax {last['versions'].get('jax')}", file=sys.stderr)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return str(value)
