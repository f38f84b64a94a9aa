"""The cache: where it lies, what it takes for its own, and that nothing half written is seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tcompile.core import cache as caching
from tcompile.core.cache import cache_dir, cached, entry_path

KEY = {"model": "abc", "counts": [1, 2], "seed": 0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"number": self.calls}


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    assert cache_dir() == folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == folder
    monkeypatch.delenv("TCOMPILE_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "tcompile"
    for useless in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert cache_dir() == Path.home() / ".cache" / "tcompile"


def test_made_once_for_equal_keys_only() -> None:
    make = Maker()
    assert cached("losses", KEY, make) == {"number": 1}
    assert cached("losses", dict(reversed(KEY.items())), make) == {"number": 1}
    assert cached("losses", {**KEY, "seed": 1}, make) == {"number": 2}
    assert cached("profiles", KEY, make) == {"number": 3}
    assert cached("losses", {**KEY, "counts": (1, 2)}, make) == {"number": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema": 1}',
        b"[" * 100_000,
        json.dumps(
            {"schema": 1, "kind": "losses", "key": {"a": 1}, "value": {"number": 9}}
        ).encode(),
        json.dumps({"schema": 1, "kind": "other", "key": KEY, "value": {"number": 9}}).encode(),
        json.dumps({"schema": 0, "kind": "losses", "key": KEY, "value": {"number": 9}}).encode(),
        json.dumps({"schema": 1, "kind": "losses", "key": KEY, "value": [9]}).encode(),
    ],
)
def test_what_is_not_ours_is_made_again_and_rewritten(content: bytes) -> None:
    path, make = entry_path("losses", KEY), Maker()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert cached("losses", KEY, make) == {"number": 1}
    assert cached("losses", KEY, make) == {"number": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_the_reader_refuses_is_made_again() -> None:
    def check(value: dict[str, Any]) -> None:
        if value["number"] < 2:
            raise ValueError("too old")

    make = Maker()
    cached("losses", KEY, make)
    assert cached("losses", KEY, make, check) == {"number": 2}
    assert cached("losses", KEY, make, check) == {"number": 2}


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    make = Maker()
    assert cached("losses", KEY, make) == {"number": 1}
    assert cached("losses", KEY, make) == {"number": 2}


def test_a_writer_that_is_stopped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(caching.Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        cached("losses", KEY, Maker())
    assert list(entry_path("losses", KEY).parent.iterdir()) == []


def test_errors_of_the_maker_are_its_own() -> None:
    def fail() -> dict[str, Any]:
        raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        cached("losses", KEY, fail)
    assert not entry_path("losses", KEY).exists()


def test_what_was_killed_while_it_wrote_is_removed(folder: Path) -> None:
    (folder / "losses").mkdir(parents=True)
    left, fresh = folder / "losses" / ".old.part", folder / "losses" / ".new.part"
    for path in (left, fresh):
        path.write_text("{")
    os.utime(left, (0, 0))
    cached("losses", KEY, Maker())
    assert not left.exists()
    assert fresh.exists()
