"""The directory a build writes: model, engine, manifest, report. All of it or nothing.

DIR/model.onnx      what ONNX Runtime runs, and what an engine is built from
DIR/engine/*        where the target can be built for on this machine
DIR/manifest.json   see tcompile/manifest.schema.json
DIR/report.md       the manifest, for people
DIR/report.html     the same with pictures
DIR/polygraphy.sh   checks by polygraphy; DIR/checks/* is what they need
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tcompile._version import __version__
from tcompile.artifact.manifest import SCHEMA, Manifest
from tcompile.artifact.page import render
from tcompile.artifact.polygraphy import SCRIPT, page, read_parts
from tcompile.core.decode import parse_json
from tcompile.core.drafts import DraftFolder, new_draft, restore
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.files import read_text
from tcompile.core.interrupt import checkpoint
from tcompile.core.model_files import file_entry
from tcompile.targets.backends.jetson import made_on_device

MODEL = "model.onnx"
MANIFEST = "manifest.json"
REPORT, PAGE = "report.md", "report.html"


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk."""

    directory: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        """The reduced, lowered ONNX model."""
        return self.directory / MODEL

    def changed_files(self) -> list[str]:
        """Files that are missing, altered, or not listed; empty when all is well."""
        return self.compare_files()[0]

    def compare_files(self) -> tuple[list[str], list[str]]:
        """Files that are not as they were written: the changed ones, and apart from them those
        that the script of a Jetson bundle made on the device, such as the engine."""
        listed = {entry.path for entry in self.manifest.files}
        jetson = self.manifest.target.runtime == "jetson"
        changed: list[str] = []
        made: list[str] = []
        for name in _changed_files(self.directory, self.manifest):
            own = jetson and made_on_device(self.directory, name, listed=name in listed)
            (made if own else changed).append(name)
        return changed, made


class Draft:
    """An artifact while it is written: a hidden folder beside the place where it will lie.

    Nothing is on disk before `empty` is called for the first time, so that whatever a build finds
    impossible before leaves no trace.

    Attributes:
        directory: where the artifact will lie.
    """

    def __init__(self, directory: str | Path, force: bool = False) -> None:
        self._given, self._force = directory, force
        self.directory = check_destination(directory, force)
        self._parents: list[Path] = []
        self._draft: DraftFolder | None = None

    @property
    def begun(self) -> bool:
        """Return whether anything was written, or tried to be."""
        return self._draft is not None

    @property
    def folder(self) -> Path:
        """Where it is written, after `empty`."""
        assert self._draft is not None
        return self._draft.folder

    def empty(self) -> Path:
        """The folder to write model, engine and so on into; what an earlier attempt left goes."""
        if self._draft is not None:
            for entry in self._draft.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            return self._draft.folder
        final = check_destination(self._given, self._force)  # planning may have taken hours
        self._parents = list(takewhile(lambda parent: not parent.exists(), final.parents))
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self._draft = new_draft(final)
        except OSError as error:
            raise cannot_write(final, error) from error
        return self._draft.folder

    def finish(self, manifest: Manifest, page: str = "") -> None:
        """Put it in place, with its report, the digests of its files and its manifest.

        Args:
            page: its report as HTML; empty: there is none.
        """
        assert self._draft is not None
        if page:
            (self._draft.folder / PAGE).write_text(page, encoding="utf-8")
        _finish(self._draft.folder, manifest)
        checkpoint()
        check_destination(self._given, self._force)  # building may have taken hours
        self._draft.put_in_place(self.directory, self._check_replaced)
        self._parents = []

    def _check_replaced(self, old: Path) -> None:
        _check_replaceable(old, str(self._given), self._force)

    def discard(self) -> None:
        """Remove what is not in place, and the folders made for it."""
        if self._draft is not None:
            self._draft.discard()
        for parent in self._parents:
            try:
                parent.rmdir()
            except OSError:
                break


@contextmanager
def new_artifact(directory: str | Path, force: bool = False) -> Iterator[Draft]:
    """Write an artifact as one step: afterwards it is all there, or nothing has changed.

    Inside the `with` block, fill the folder that `Draft.empty` gives, then call `Draft.finish`.

    Args:
        directory: where it will lie. An artifact of tcompile that is already there is replaced.
        force: replace also an artifact in which files were altered or added since it was written.

    Raises:
        UsageError: the directory holds something that is not an artifact, or cannot be written.
    """
    draft = Draft(directory, force)
    try:
        yield draft
    except OSError as error:
        if draft.begun:
            raise cannot_write(draft.directory, error) from error
        raise
    finally:
        draft.discard()


def check_destination(directory: str | Path, force: bool = False) -> Path:
    """The resolved directory, if an artifact may be written there; call it before long work.

    Raises `UsageError` otherwise. A directory that is not an artifact is never replaced, not even
    with `force`: a typing error should not cost a home directory.
    """
    where = str(directory)
    try:
        final = Path(directory).resolve()
        restore(final)
        _check_place(final, where)
        if final.exists():
            _check_replaceable(final, where, force)
    except RuntimeError as error:  # of a circle of links, on older Pythons
        raise UsageError(_CIRCLE, where=where, hint="choose another -o") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(_CIRCLE, where=where, hint="choose another -o") from error
        raise cannot_write(Path(directory), error) from error
    return final


def _check_place(final: Path, where: str) -> None:
    """Raise UsageError where no folder can take that name."""
    if final.is_dir():
        inside = f"-o {Path(where) / 'NAME'}"
        with suppress(FileNotFoundError):  # of a current directory that was removed
            if Path.cwd().resolve().is_relative_to(final):
                what = "the current directory is there, and would be replaced"
                hint = "run it from another folder" if is_artifact(final) else inside
                raise UsageError(what, where=where, hint=hint)
        if os.path.ismount(final):
            what = "is a mount point, which cannot be replaced"
            raise UsageError(what, where=where, hint=inside)
    above = next(parent for parent in final.parents if parent.exists())
    if not above.is_dir():
        raise UsageError(f"cannot write the artifact: '{above}' is not a directory", where=where)
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write the artifact: the folder '{above}' cannot be written to",
            where=where,
            hint="choose another -o",
        )


def _check_replaceable(folder: Path, where: str, force: bool) -> None:
    """Raise UsageError unless what lies there is an empty directory or an artifact of ours."""
    if not folder.is_dir():
        raise UsageError("exists and is not a directory", where=where, hint="choose another -o")
    if not any(folder.iterdir()):
        return
    try:
        changed = load_artifact(folder).changed_files()
    except TcompileError:
        raise UsageError(
            "exists and is not a tcompile artifact; it is left alone",
            where=where,
            hint="choose another -o, or remove it yourself",
        ) from None
    if changed and not force:
        raise UsageError(
            f"holds an artifact in which '{changed[0]}' was changed or added since it was written",
            where=where,
            hint="--force replaces it all the same",
        )


def load_artifact(directory: str | Path) -> Artifact:
    """Read an artifact's manifest.

    Raises:
        UsageError: no artifact there.
        ModelError: a manifest that is damaged or of another version.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    _restore(directory)
    if not path.is_file():
        what = "no such directory" if not directory.exists() else "not a tcompile artifact"
        raise UsageError(
            f"{what}, there is no {MANIFEST}", where=str(directory), hint="tcompile build makes one"
        )
    document: object = None
    try:
        document = parse_json(read_text(path))
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"not a {SCHEMA} document")
        return Artifact(directory, Manifest.from_json(document))
    except (ValueError, OSError) as error:
        tool = document.get("tool") if isinstance(document, dict) else None
        other = isinstance(tool, str) and tool != f"tcompile {__version__}"
        hint = f"written by {tool}, this is tcompile {__version__}" if other else ""
        raise ModelError(f"damaged manifest: {error}", where=str(path), hint=hint) from error


def is_artifact(path: str | Path) -> bool:
    """Return whether a path is a directory with a manifest in it."""
    _restore(path)
    return (Path(path) / MANIFEST).is_file()


def _finish(directory: Path, manifest: Manifest) -> None:
    script = directory / SCRIPT
    checks = page(read_parts(read_text(script))) if script.is_file() else ""
    (directory / REPORT).write_text(render(manifest) + checks, encoding="utf-8")
    manifest = manifest.with_files(file_entry(p, directory) for p in _files(directory))
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _files(directory: Path) -> list[Path]:
    found = sorted(p for p in directory.rglob("*") if p.is_file())
    return [p for p in found if p != directory / MANIFEST]


def _changed_files(directory: Path, manifest: Manifest) -> list[str]:
    listed = {entry.path: entry for entry in manifest.files}
    there = {p.relative_to(directory).as_posix(): p for p in _files(directory)}
    differing = set(listed) ^ set(there)
    for name in set(listed) & set(there):
        # The size first: it saves hashing an engine that is plainly another one.
        if there[name].stat().st_size != listed[name].bytes or (
            file_entry(there[name], directory) != listed[name]
        ):
            differing.add(name)
    return sorted(differing)


def _restore(directory: str | Path) -> None:
    with suppress(OSError, RuntimeError, ValueError):  # whatever it is, it is no artifact
        restore(Path(directory).resolve())


_CIRCLE = "is a link that leads back to itself"


def cannot_write(path: Path, error: OSError) -> UsageError:
    """Say which folder cannot be written: that of the artifact, or that of temporary files."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    temporary = Path(tempfile.gettempdir()).resolve()
    named = None if error.filename is None else Path(os.fsdecode(error.filename)).absolute()
    if named is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Who wrote does not say where: what has less room.
        there = next(p for p in (path, *path.parents) if p.exists())
        if shutil.disk_usage(temporary).free < shutil.disk_usage(there).free:
            named = temporary
    if named is not None and named.is_relative_to(temporary) and not path.is_relative_to(temporary):
        return UsageError(
            f"cannot write temporary files: {reason}",
            where=str(temporary),
            hint="set TMPDIR to a folder with more room",
        )
    return UsageError(f"cannot write the artifact: {reason}", where=str(named or path))
