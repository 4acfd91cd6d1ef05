"""Files that are made once, in a directory that is the user's alone: what lies there is loaded as code."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def directory() -> Path:
    """$XDG_CACHE_HOME/fedjax_rl/fused, or ~/.cache/...; where that cannot be had, a temporary one of this process."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # without HOME and without a passwd entry "~" stays "~"
        path = Path(home, "fedjax_rl", "fused")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.stat()
            is_private = found.st_uid == os.getuid() and not found.st_mode & 0o022
            if is_private and os.access(path, os.W_OK | os.X_OK):
                return path
        except OSError:
            pass
    return _temporary()


@functools.cache
def _temporary() -> Path:
    path = tempfile.mkdtemp(prefix="fedjax_rl-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The file of that name; `make(path)` writes it if it is not there.

    Written beside and renamed, so that processes that make it at once each find a whole file, also after a power cut.
    """
    folder = directory()
    if (folder / name).exists():
        return folder / name
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        made = Path(beside) / name
        make(made)
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        os.replace(made, folder / name)
    return folder / name
