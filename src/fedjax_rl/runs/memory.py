"""What a program of a round needs of the memory that there is."""

from typing import Any

import jax

SHARE = 0.8  # of what is available, for one program


def needed(step: jax.stages.Compiled) -> int:
    """Bytes that a compiled program holds at most: arguments, results and temporaries, donated ones counted once."""
    sizes: Any = step.memory_analysis()
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return kept + sizes.temp_size_in_bytes


def available() -> int | None:
    """Bytes free on the device (on a CPU: in the machine), or None when the platform does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
