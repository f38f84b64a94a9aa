"""Builds that are killed at every call to the file system: the old artifact is there, or the new.

    python -m tests.support.kill_points

A child process writes an artifact of a few small files as `tcompile build` does, and is killed
(SIGKILL) before its k-th call that changes files, for every k. Then the next command is run.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tcompile.artifact.directory import check_destination, is_artifact, load_artifact, new_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core import drafts
from tests.support.artifacts import manifest_for
from tests.support.tiny_vit import save_tiny_vit

#: Audit events of calls that change files; the last is raised by `drafts` before renameat2.
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "shutil.rmtree",
    "fcntl.flock",
    "tcompile.exchange",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Situation:
    """The state of things before a build.

    Attributes:
        exchange: whether the file system can exchange two names.
        before: whether there is an old artifact.
        changed: whether a file of it was changed by hand (`--force`).
        attempts: times that the build begins anew.
    """

    exchange: bool
    before: bool = True
    changed: bool = False
    attempts: int = 1


SITUATIONS = tuple(
    Situation(exchange, before, changed, attempts)
    for exchange in (True, False)
    for before, changed in ((False, False), (True, False), (True, True))
    for attempts in (1, 2)
)


@dataclass(frozen=True)
class Place:
    """A folder to build in, and what an artifact there says of itself."""

    folder: Path
    manifest: Manifest

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def build(self, text: str, attempts: int = 1) -> None:
        """Write an artifact that holds a text."""
        with new_artifact(self.out, force=True) as draft:
            for _ in range(attempts):
                made = draft.empty()
                (made / "engine").mkdir()
                (made / "engine" / "a.engine").write_text(text)
                (made / "model.onnx").write_text(text * 9)
            draft.finish(self.manifest)

    def text(self) -> str | None:
        """What the artifact there holds; None: there is none. It must be whole."""
        if not self.out.exists():
            return None
        found = load_artifact(self.out)
        text = (self.out / "engine" / "a.engine").read_text()
        # A file that a person changed is still as changed as it was.
        assert found.changed_files() in ([], ["report.md"]), found.changed_files()
        assert (self.out / "model.onnx").read_text() == text * 9
        return text

    def others(self) -> list[str]:
        """What lies there beside the artifact."""
        return sorted(p.name for p in self.folder.iterdir() if p != self.out)


def killed_at(
    count: int, do: Callable[[], None], events: Sequence[str] = (*CHANGES, "open")
) -> str | None:
    """Run something in a child process, which is killed before its call of this number.

    Args:
        events: calls that count; of `open`, those that may write.

    Returns:
        The call; None: it came to its end.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left = count

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            reads = event == "open" and not (isinstance(f := arguments[2], int) and f & _WRITES)
            if event not in events or reads:
                return
            left -= 1
            if left == 0:
                os.write(writing, event.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            do()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        call = stream.read()
    os.waitpid(child, 0)
    return call or None


def place(folder: Path, source: Path, situation: Situation) -> Place:
    """A new folder in a situation."""
    found = Place(folder, manifest_for(source, source))
    folder.mkdir()
    if situation.before:
        found.build("old")
    if situation.changed:
        (found.out / "report.md").write_text("by hand")
    return found


def calls(folder: Path, source: Path, situation: Situation) -> list[str]:
    """Kill a build at each of its calls, and look at what is left. Returns the calls.

    Raises:
        AssertionError: there is neither the old artifact nor the new one, or something is left.
    """
    seen: list[str] = []
    while True:
        here = place(folder / str(len(seen)), source, situation)
        build = partial(here.build, "new", situation.attempts)
        call = killed_at(len(seen) + 1, build)
        if call is None:
            assert (here.text(), here.others()) == ("new", [])
            return seen
        seen.append(call)
        where = f"killed before call {len(seen)}, {call}, of {seen}, in {situation}"
        if situation.exchange and situation.before:
            assert here.text() in ("old", "new"), f"none at any time: {where}"
        NEXT[len(seen) % len(NEXT)](here)
        allowed = ("old", "new") if situation.before else (None, "new")
        assert here.text() in allowed, f"{here.text()}: {where}"
        here.build("next")
        assert (here.text(), here.others()) == ("next", []), f"{here.others()}: {where}"


#: The next command, whatever it is.
NEXT: tuple[Callable[[Place], object], ...] = (
    lambda here: is_artifact(here.out),
    lambda here: check_destination(here.out, force=True),
    lambda here: is_artifact(here.out) and load_artifact(here.out),
    lambda here: is_artifact(Path(os.path.relpath(here.out))),
)


def between_renames(folder: Path, source: Path, times: int) -> int:
    """Kill builds after the old artifact was moved away and before the new one is there."""
    situation = Situation(exchange=False)
    for i in range(times):
        here = place(folder / f"between{i}", source, situation)
        assert killed_at(2, partial(here.build, "new"), ("os.rename",)) == "os.rename"
        assert not here.out.exists()
        NEXT[i % len(NEXT)](here)
        assert here.text() == "old"
        here.build("next")
        assert (here.text(), here.others()) == ("next", [])
    return times


@contextmanager
def no_exchange() -> Iterator[None]:
    """Let the file system have no exchange of names."""
    before, drafts._exchange = drafts._exchange, lambda one, other: False
    try:
        yield
    finally:
        drafts._exchange = before


def main() -> None:
    """Kill builds in every situation, and say how many."""
    with tempfile.TemporaryDirectory() as name:
        source, total = save_tiny_vit(Path(name) / "vit.onnx"), 0
        for i, situation in enumerate(SITUATIONS):
            folder = Path(name) / f"{i}"
            folder.mkdir()
            with nullcontext() if situation.exchange else no_exchange():
                seen = calls(folder, source, situation)
            total += len(seen)
            print(f"{situation}: {len(seen)} kill points, all well")
        with no_exchange():
            total += between_renames(Path(name), source, 20)
        print(f"{total} kill points, 20 of them between two renames: the old artifact or the new")


if __name__ == "__main__":
    main()
