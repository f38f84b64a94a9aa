"""Folders that are written hidden, beside the place where they will lie, and put there in one step.

A draft is locked as long as the process lives that writes it, so that what a killed one left can be
told from what is still written: the next draft for the same place removes it. Where an older folder
is replaced, the two are exchanged in one system call; where the file system has none for it, the
older one is moved away first, and a kill in between is made good by `restore`.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing tells who is alive, so nothing is removed
    fcntl = None  # type: ignore[assignment]

_DRAFT, _OLD = "draft", "old"
_TOKEN = 8
#: <fcntl.h> and <linux/fs.h>.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: Seconds in which a live process has put its draft in place.
_MOMENT = 1.0


@dataclass
class DraftFolder:
    """A locked folder, hidden beside the place where it will lie."""

    folder: Path
    _lock: int | None

    def put_in_place(self, final: Path, judge: Callable[[Path], object]) -> None:
        """Let the folder be `final`; what was there before is only deleted once that is done.

        Args:
            judge: raises an error of what was there and must not be deleted; it is then put back.
        """
        _replace(self.folder, final, judge)
        self.release()

    def discard(self) -> None:
        """Remove what is not in place."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def new_draft(final: Path, mode: int = 0o777) -> DraftFolder:
    """Make an empty draft of a folder, and remove what killed processes left of earlier ones."""
    sweep(final)
    while True:
        folder = final.with_name(f".{final.name}.{secrets.token_hex(_TOKEN // 2)}.{_DRAFT}")
        folder.mkdir(mode)
        try:
            return DraftFolder(folder, _locked(folder))
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process swept it before it was locked.


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that are gone afterwards, where the system keeps those (TMPDIR)."""
    draft = new_draft(Path(tempfile.gettempdir()) / "tcompile", 0o700)
    try:
        yield draft.folder
    finally:
        draft.discard()


def sweep(final: Path) -> None:
    """Remove what killed processes left of drafts for a place."""
    restore(final)
    for folder in _left(final, _DRAFT, _OLD):
        with suppress(OSError), _held(folder.with_suffix(f".{_DRAFT}")) as dead:
            if dead:
                shutil.rmtree(folder, ignore_errors=True)


def restore(final: Path) -> None:
    """Put back what a killed process had moved out of the way, where nothing took its place."""
    if os.path.lexists(final):
        return
    for old in _left(final, _OLD):
        with suppress(OSError), _held(old.with_suffix(f".{_DRAFT}")) as dead:
            if not dead:  # it may be about to put its draft in place
                time.sleep(_MOMENT)
            if not os.path.lexists(final):
                old.rename(final)
            return


@contextmanager
def _held(draft: Path) -> Iterator[bool]:
    """Hold the lock of a draft, and tell whether no live process writes it any more."""
    lock = None
    try:
        lock = _locked(draft)
        dead = lock is not None
    except FileNotFoundError:
        dead = True
    except OSError:
        dead = False
    try:
        yield dead
    finally:
        if lock is not None:
            os.close(lock)


def _left(final: Path, *suffixes: str) -> list[Path]:
    """Folders that belong to a place, the newest first."""
    start, found = f".{final.name}.", []
    with suppress(OSError):
        for entry in os.scandir(final.parent):
            token, _, suffix = entry.name[len(start) :].partition(".")
            ours = entry.name.startswith(start) and len(token) == _TOKEN and suffix in suffixes
            if ours and entry.is_dir(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False).st_mtime, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)]


def _locked(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder until it is closed; None where there are
    no locks.

    Raises:
        BlockingIOError: a live process holds it.
        FileNotFoundError: the folder is gone.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise FileNotFoundError(folder)
    except BaseException as error:
        os.close(descriptor)
        known = isinstance(error, (BlockingIOError, FileNotFoundError))
        if known or not isinstance(error, OSError):
            raise
        return None
    return descriptor


def _replace(draft: Path, final: Path, judge: Callable[[Path], object]) -> None:
    if not final.exists():
        draft.rename(final)
        return
    if _exchange(draft, final):
        try:
            judge(draft)
        except BaseException:
            _exchange(draft, final)
            raise
        shutil.rmtree(draft, ignore_errors=True)
        return
    old = draft.with_suffix(f".{_OLD}")
    try:
        final.rename(old)
        judge(old)
        draft.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    finally:
        if final.exists() and not draft.exists():
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders have each other's name, in one step; False where that is not possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    names = (os.fsencode(one), os.fsencode(other))
    sys.audit("tcompile.exchange", *names)
    done = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    return bool(done == 0)
