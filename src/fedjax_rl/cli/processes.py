"""What a command does before its work: where compiled programs are kept, and the other processes of the run."""

import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_rl.config import ConfigError
from fedjax_rl.host import agreement, exits, lifeline, output


def meet(command: str, options: Any, directory: Path | None) -> None:
    """Where compiled programs are kept, and the other processes of the run; before jax is imported."""
    if options.no_cache:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    else:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(home):  # without a home "~" stays as it is, and would be a directory of that name here
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "fedjax_rl"))
    if options.coordinator is None:
        return
    if directory is None:
        raise ConfigError("--coordinator needs --out: all processes must name the same directory, which all can see")
    place = (options.coordinator, options.num_processes, options.process_id, None)
    if options.coordinator == "auto":
        from fedjax_rl.federation.placement import ask_cluster

        place = ask_cluster(options.join_timeout)

    def remedy() -> str:
        from fedjax_rl.runs import rundir

        is_begun = (directory / rundir.CONFIG).exists() or rundir.is_sweep(directory)
        return f"resume all of them: fedjax-rl resume {directory}" if is_begun and command != "eval" else lifeline.AGAIN

    lifeline.join(*place, options.join_timeout, remedy, (lambda _: None) if options.quiet else output.inform)


NOT_SHARED = {"no_cache", "coordinator", "num_processes", "process_id", "join_timeout", "print_config", "json", "quiet"}
ELSEWHERE = {"preset", "config", "out", "run"}  # in the configuration that they make, and in the directory


def start(command: str, options: Any, config: Any, directory: Path | None) -> None:
    """Compare what all processes of the run must share, and start JAX in them; nothing is written or compiled yet."""
    if options.coordinator is None:
        return
    assert directory is not None, "join_run has seen to it"
    from fedjax_rl.envs import engine
    from fedjax_rl.federation import placement
    from fedjax_rl.runs import provenance, rundir

    given = {key: value for key, value in vars(options).items() if key not in NOT_SHARED | ELSEWHERE}
    facts = {
        "command": command,
        "directory": str(directory.parent.resolve() / directory.name),  # a look at itself might be remembered
        "algorithm": config.algorithm,
        **vars(config),
        **{f"--{key.replace('_', '-')}": value for key, value in given.items()},
        "Python": platform.python_version(),
        **provenance.versions(),
        **placement.settings(),
        "checkpoints": sorted(step.name for step in (directory / rundir.CHECKPOINTS).glob("*.digest.json")),
    }
    agreement.same(facts)
    if command != "eval":
        agreement.same_directory(directory)
    placement.start_processes()
    physics = engine(config.env, getattr(options, "backend", None) or config.backend)  # before a device is touched
    agreement.same({"physics": physics})
    placement.same_devices()


@contextmanager
def held() -> Iterator[None]:
    """Around all that a process does: an error that nobody expected does not leave the others waiting."""
    try:
        yield
    except Exception as error:
        joined = lifeline.joined()
        if joined is None:
            raise
        time.sleep(lifeline.GRACE_S)  # most likely another process is gone, and this one ends meanwhile
        traceback.print_exc(file=output.stderr)
        lifeline.because(f"{type(error).__name__}, see what it printed; {joined.remedy()}")
        joined.leave(exits.CANNOT_WRITE)
