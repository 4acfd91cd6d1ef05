"""Whether a run that is to go on has anything left to do."""

from pathlib import Path

from fedjax_rl.config import Config, ConfigError
from fedjax_rl.runs import rundir, runner, scoring


def rounds_done(path: Path, config: Config) -> int:
    """The rounds of a run that is finished; 0 for one that has to go on, as a diverged one from its newest checkpoint.

    Raises:
      ConfigError: more rounds are done than the configuration asks for.
    """
    if (path / rundir.DIVERGED).exists() or not runner.is_settled(path, config):
        return 0
    done = max(row["round"] for row in scoring.finals(path))
    if done > config.rounds:
        raise ConfigError(f"--rounds {config.rounds}: {done} rounds are done already; ask for more")
    return done
