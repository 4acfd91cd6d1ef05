"""What is measured and how: `fedjax-rl bench NAME`. Every function gives rows with versions and device.

Tests never assert seconds; these never assert anything. One benchmark at a time: they use every core.
"""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fedjax_rl.bench.rows import Row
from fedjax_rl.host import output
from fedjax_rl.host.files import write_new
from fedjax_rl.host.numerics import pinned

WHERE = {
    "physics": "physics",
    "update": "update",
    "round": "round",
    "run": "run",
    "memory": "run",
    "scaling": "scaling",
    "compile": "compile",
    "peers": "peers",
    "envs": "envs",
    "kinds": "kinds",
    "async": "asynchronous",
    "trust": "trust",
}
MEASURE = {"async": "asynchronous"}  # the function, where its name cannot be the benchmark's
FACTS = ("versions", "device", "devices", "cores", "git")


@pinned()
def bench(name: str, env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """The rows of one benchmark."""
    measure: Callable[..., list[Row]] = getattr(
        import_module(f"fedjax_rl.bench.{WHERE[name]}"), MEASURE.get(name, name)
    )
    return measure(env, backend, sizes, repeats)


def show(rows: list[Row], *, as_json: bool, out: Path | None) -> None:
    """Print the rows; with `out`, also write them as JSON, replacing nothing."""
    if out:
        write_new(out, (json.dumps(rows, indent=1) + "\n").encode())
    if as_json:
        output.result(json.dumps(rows))
        return
    blocks = [[f"{key:<40}{_text(value)}" for key, value in row.items() if key not in FACTS] for row in rows]
    output.result("\n\n".join(map("\n".join, blocks)))
    if rows:
        last = rows[-1]
        output.inform(f"{last['device']}, {last['cores']} cores, jax {last['versions'].get('jax')}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return str(value)
