"""Folders for temporary files: a process removes its own, and those of processes that are gone."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from tcompile.core import drafts
from tcompile.core.drafts import new_draft, restore, scratch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed_inside() -> None:
    """Let a process be killed while it has a folder for temporary files."""
    child = os.fork()
    if child == 0:
        with scratch() as made:
            (made / "weights").write_text("large")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_what_a_killed_process_left_is_removed_by_the_next(folder: Path) -> None:
    with scratch() as mine:
        (mine / "x").write_text("x")
        killed_inside()
        (left,) = (p for p in folder.iterdir() if p != mine)
        assert (left / "weights").exists()
        with scratch() as other:
            assert sorted(folder.iterdir()) == sorted([mine, other])
            assert (mine / "x").exists()
            assert other.stat().st_mode & 0o777 == 0o700
        assert list(folder.iterdir()) == [mine]
    assert list(folder.iterdir()) == []


def test_without_locks_nothing_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells a live process from a dead one."""
    killed_inside()
    monkeypatch.setattr(drafts, "fcntl", None)
    before = set(folder.iterdir())
    with scratch() as made:
        assert set(folder.iterdir()) == {*before, made}
    assert set(folder.iterdir()) == before != set()


def test_a_folder_in_the_making_that_is_swept_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking it another process may take it for one that was left."""
    locked, swept = drafts._locked, list[Path]()

    def late(path: Path) -> int | None:
        if not swept:
            swept.append(path)
            path.rmdir()
        return locked(path)

    monkeypatch.setattr(drafts, "_locked", late)
    draft = new_draft(folder / "out")
    assert draft.folder.is_dir()
    assert draft.folder != swept[0]


def test_what_is_about_to_be_put_in_place_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live process between its two renames."""
    final, waited = folder / "out", list[float]()
    draft = new_draft(final)
    (draft.folder / "new").write_text("new")
    old = draft.folder.with_suffix(".old")
    old.mkdir()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        draft.folder.rename(final)

    monkeypatch.setattr(drafts.time, "sleep", sleep)
    restore(final)
    assert waited
    assert (final / "new").exists()
    assert old.exists()
