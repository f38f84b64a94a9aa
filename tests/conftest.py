"""Fixtures and options that all tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drawn_scenes import remember_scenes
from tests.support.torchlib import remember_tables

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Workers share the cores; threads of each on all of them take half as long again.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):  # not on Windows and macOS
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the files of tests/golden"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden: golden files are not rewritten where CI is set")


remember_scenes()

# Collecting the tests makes 7,000 objects of pytest's and imports much; none of it is garbage.
gc.disable()
#: How many modules were imported when the libraries' objects were last set aside.
_set_aside = 0


def set_libraries_aside() -> None:
    """Let the garbage collector look at what tests make, not at the libraries that are imported.

    Every full collection, and each build does several, would go through all objects of PyTorch and
    ONNX: a quarter of a second. Tests import some libraries late, so this is done again then.
    """
    global _set_aside
    if len(sys.modules) < _set_aside + 50:
        return
    gc.collect()
    gc.freeze()
    _set_aside = len(sys.modules)


def pytest_collection_finish() -> None:
    set_libraries_aside()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def libraries() -> None:
    """See `remember_tables` and `set_libraries_aside`."""
    remember_tables()
    set_libraries_aside()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Return whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for exported models, one for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def away_from_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Profiles and losses of tests are kept in a folder of theirs, by subprocesses too."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TCOMPILE_CACHE", str(folder / "fixtures"))
        yield folder


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, away_from_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What one test measured is not there for another."""
    folder = away_from_home / f"{abs(hash(request.node.nodeid)):x}"
    monkeypatch.setenv("TCOMPILE_CACHE", str(folder))
    return folder
