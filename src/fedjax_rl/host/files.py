"""Text files as people write them, files replaced whole or not at all, and the operating system's refusals in words."""

import errno
import os
from pathlib import Path

from fedjax_rl.host.exits import CannotWrite, ConfigError

REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "the limit on a file's size is reached: raise it (ulimit -f)",
    errno.EROFS: "choose another place",
    errno.EACCES: "ask for the right to it, or choose another place",
    errno.EPERM: "ask for the right to it, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle: choose another name",
    errno.EISDIR: "a file is needed there, and it is a directory: choose another name",
    errno.ENOTDIR: "a directory is needed there: move the file away",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EIO: "look at the disk",
    errno.ESTALE: "the network's file system is gone: mount it again",
}


def explain(error: OSError) -> str:
    """One line of an error of the operating system: the path, the reason, what to do."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {remedy}" if remedy else "")


def read_text(path: str | os.PathLike) -> str:
    """A text file: UTF-8 with or without a byte-order mark, lines ended as on any system.

    Raises:
      ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start} is 0x{byte:02x}") from None


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, whole or not at all, and see it on the disk.

    Raises:
      CannotWrite: it exists, or the system refuses.
    """
    try:
        with open(path, "xb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink()
                raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {explain(OSError(error.errno, error.strerror))}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and see it on the disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and see it on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
