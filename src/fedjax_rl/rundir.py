"""A run directory: what is in it and who may write there."""

import fcntl
import functools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedjax_rl import host
from fedjax_rl.config import Config, ConfigError
from fedjax_rl.layers import load, loads, to_toml

CONFIG, ENV, METRICS, EVAL, CHECKPOINTS = "config.toml", "env.json", "metrics.jsonl", "eval.jsonl", "ckpt"
DIVERGED, SWEEP = "diverged.json", "sweep.json"
PACKAGES = ("fedjax-rl", "jax", "jaxlib", "mujoco", "mujoco-mjx", "flax", "optax", "orbax-checkpoint", "brax", "numpy")

_is_reader = False


def only_read() -> None:
    """From now on this process writes nothing: another one of the same run does."""
    global _is_reader
    _is_reader = True


def is_reader() -> bool:
    """Does another process of this run write, and speak?"""
    return _is_reader


def _by_the_writer(fn: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(fn)
    def call(*args, **kwargs):
        if not _is_reader:
            fn(*args, **kwargs)

    return call


def default_path(config: Config, kind: str = "") -> Path:
    """runs/<env>-<algorithm>-<seed<k> or kind>-<timestamp> under the current directory."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.env.replace('/', '_')}-{config.algorithm}-{kind or f'seed{config.seed}'}-{stamp}"


@_by_the_writer
def refuse_existing(path: Path) -> None:
    """Refuse a directory that holds something, before anything is written."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        is_ours = (path / CONFIG).exists() or is_sweep(path)
        hint = f"continue it with: fedjax-rl resume {path}" if is_ours else "choose another --out"
        raise ConfigError(f"--out {path} exists and is not empty; {hint}")


@_by_the_writer
def create(path: Path, config: Config) -> None:
    """Make the directory with its config.toml and env.json."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / CHECKPOINTS).mkdir(exist_ok=True)
        write_config(path, config)
        (path / ENV).write_text(json.dumps(describe(config.seed), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the run directory {path}: {error.strerror}") from error


@_by_the_writer
def create_sweep(path: Path, members: Mapping[Path, Config], halvings: int) -> None:
    """Make the directory and remember what the sweep was asked to do."""
    plan = {member.name: to_toml(config) for member, config in members.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / SWEEP).write_text(json.dumps({"halvings": halvings, "members": plan}, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the sweep's directory {path}: {error.strerror}") from error


def is_sweep(path: Path) -> bool:
    """Does the directory hold a sweep?"""
    return (path / SWEEP).exists()


def read_sweep(path: Path) -> tuple[dict[Path, Config], int]:
    """The members of a sweep, as they were asked for, and its halvings."""
    try:
        record = json.loads((path / SWEEP).read_text())
        texts, halvings = record["members"].items(), record["halvings"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path / SWEEP} is damaged; its runs can be resumed one by one") from None
    return {path / name: loads(text) for name, text in texts}, halvings


@_by_the_writer
def write_config(path: Path, config: Config) -> None:
    """Write config.toml, whole or not at all: a run whose values cannot be read, or differ, is refused."""
    fresh = path / f"{CONFIG}.new"
    fresh.write_text(to_toml(config))
    fresh.replace(path / CONFIG)


def read_config(path: Path) -> Config:
    """The configuration of a run directory."""
    if not (path / CONFIG).exists():
        raise ConfigError(f"{path} is not a run directory: it has no {CONFIG}")
    return load(path / CONFIG)


@contextmanager
def writer(path: Path):
    """Hold the directory for one writer at a time."""
    if _is_reader:
        yield
        return
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{path} is being written by another process; wait for it to end") from error
        yield


@_by_the_writer
def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON and flush it; numbers that are not finite become null."""
    with open(path, "a") as file:
        file.write(json.dumps(_finite(record)) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


@_by_the_writer
def go_back(path: Path, config: Config, round: int) -> None:
    """Make the directory what it was after a round, with the configuration that it goes on with."""
    for name in (METRICS, EVAL):
        forget_after(path / name, round)
    (path / DIVERGED).unlink(missing_ok=True)
    write_config(path, config)


@_by_the_writer
def forget_after(path: Path, round: int) -> None:
    """Drop the records past a round, so that a resumed run writes them again exactly once."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_lines(path) if record["round"] <= round]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        temporary.rename(path)


@_by_the_writer
def mark_diverged(path: Path, round: int) -> None:
    """Remember that the run ceased to be finite in a round, so that its sweep does not try it again."""
    (path / DIVERGED).write_text(json.dumps({"round": round}) + "\n")


def describe(seed: int) -> dict[str, Any]:
    """Where a run took place: versions, device, git revision, command line, seed."""
    import jax

    from fedjax_rl.numerics import PRNG

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions(),
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "cores": host.cores(),
        "prng": PRNG,
        "git": git_revision(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
    }


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that decide a run's numbers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    is_bad = isinstance(value, float) and (value != value or abs(value) == float("inf"))
    return None if is_bad else value


def git_revision() -> str | None:
    here = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in here.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "-C", here, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def has_checkpoint(path: Path) -> bool:
    """Is there a finished step, good or not? Needs no jax, so that a run without one is refused at once."""
    return any((path / CHECKPOINTS).glob("*.digest.json"))


def should_have_saved(path: Path, config: Config) -> bool:
    """Did the run get past its first checkpoint? A run that was killed before it has lost nothing by starting again."""
    return any(record["round"] > config.save_every for record in read_lines(path / METRICS))
