"""Files that a person names: kind and size are looked at before one is read or written.

A pipe, a device or a socket may never end, and opening one may do something. Links are followed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tcompile.core.errors import UsageError

#: Bytes of a text (JSON, CSV) at most; the largest that tcompile writes are far below.
MOST_TEXT = 64 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file(path: str | Path, *, hint: str = "") -> Path:
    """Return the path of a file that can be opened without harm.

    Args:
        hint: what to give instead.

    Raises:
        UsageError: there is none, or it is a directory, a pipe, a device or a socket.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(_absent(error), where=str(path), hint=hint) from error
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise UsageError(f"is {name}, not a file", where=str(path), hint=hint)
    return path


def output_file(path: str | Path) -> Path:
    """Return where a file is written: what a link leads to is replaced, not the link.

    Raises:
        UsageError: a file cannot be written there: there is a directory, a pipe, a device or a
            socket, or no folder, or one that cannot be written to.
    """
    final = Path(path)
    try:
        final = final.resolve()
        if final.exists() or final.is_symlink():  # one of a circle stays as it is
            regular_file(path, hint="give the name of a file")
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(_absent(error), where=str(path)) from error
    if not final.parent.is_dir():
        raise UsageError("the folder does not exist", where=str(path))
    if not os.access(final.parent, os.W_OK):
        raise UsageError("the folder cannot be written to", where=str(path))
    return final


def write_file(path: Path, text: str) -> None:
    """Write a text, all of it or nothing.

    Args:
        path: as `output_file` gives it.

    Raises:
        UsageError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}", where=str(path)
        ) from error
    finally:
        part.unlink(missing_ok=True)


def read_bytes(path: str | Path, *, most: int = MOST_TEXT, hint: str = "") -> bytes:
    """Return the contents of a file.

    Args:
        most: bytes that it may have.
        hint: what to give instead.

    Raises:
        UsageError: as `regular_file`; also it is larger, or cannot be read.
    """
    path = regular_file(path, hint=hint)
    try:
        with path.open("rb") as stream:  # as much as is asked for is allocated first
            size = path.stat().st_size or most  # of what the kernel makes up it is 0
            found = stream.read(min(size, most) + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"cannot be read: {reason}", where=str(path)) from error
    if len(found) > most:
        raise UsageError(f"is larger than {in_words(most)}", where=str(path), hint=hint)
    return found


def read_text(path: str | Path, *, hint: str = "") -> str:
    """Return a text file's contents, without the mark that editors put before UTF-8.

    Raises as `read_bytes`; also where it is not UTF-8.
    """
    try:
        return read_bytes(path, hint=hint).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("is not text in UTF-8", where=str(path), hint=hint) from error


def in_words(count: int) -> str:
    """Return a number of bytes as people say it: `3.2 GiB`."""
    number, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"


def _absent(error: Exception) -> str:
    if not isinstance(error, OSError):  # a zero byte in it; a circle of links on older Pythons
        return "is not a path that leads to a file"
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "no such file"
    return f"cannot be read: {os.strerror(error.errno or 0)}"
