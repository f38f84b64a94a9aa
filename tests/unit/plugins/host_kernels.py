"""Building the kernels for the host once a test run, and running them in processes of their own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.host_build import (
    AOT_SOURCES,
    CUDA,
    SOURCES,
    build,
    compile_one,
    compiler,
    link,
    preload,
)


def _shared(factory: pytest.TempPathFactory, name: str, sources: tuple[str, ...]) -> Path:
    """A library under sanitizers; workers of one test run share it."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    shared = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "libtcompile_host.so"
        if not library.exists():
            folder.mkdir(exist_ok=True)
            build(folder, sanitize=True, sources=sources)
    return library


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels under sanitizers."""
    return _shared(tmp_path_factory, "host_kernels", SOURCES)


@pytest.fixture(scope="session")
def aot_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those compiled ahead of time under sanitizers."""
    return _shared(tmp_path_factory, "host_aot", AOT_SOURCES)


def run(library: Path, count: int, seed: int, *names: str) -> subprocess.CompletedProcess[str]:
    """Cases of some ops on a library: see host_runner.py."""
    return script("host_runner.py", library, str(count), str(seed), *names)


def script(name: str, library: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder on a library, where sanitizers are loaded."""
    command = [sys.executable, str(Path(__file__).parent / name), str(library), *arguments]
    env = {**os.environ, **preload(), "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def changed(library: Path, folder: Path, file: str, old: str, new: str) -> Path:
    """The library with a piece of text in its source replaced.

    Raises:
        LookupError: the text is not there, or more than once.
    """
    source = folder / "cuda"
    shutil.copytree(CUDA, source)
    text = (source / file).read_text()
    if text.count(old) != 1:
        raise LookupError(f"{file} has {old!r} {text.count(old)} times")
    (source / file).write_text(text.replace(old, new))
    objects = folder / "objects"
    objects.mkdir()
    for made in library.parent.glob("*.o"):
        shutil.copy(made, objects)
    # What is not in a source of its own is in the one of the same name, or in select.cu.
    stem = Path(file).stem
    unit = source / (f"{stem}.cu" if (source / f"{stem}.cu").exists() else "select.cu")
    compile_one(unit, objects, sanitize=True, optimise="-O0")
    return link(objects, sanitize=True)
