"""What this process may use of its machine."""

import os


def cores() -> int:
    """Cores that the process may run on: what `taskset`, Slurm and containers leave it, not what the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1
