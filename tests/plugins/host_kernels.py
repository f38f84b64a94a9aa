"""Building the kernels for the host once a test run, and running them in processes of their own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcompile.plugins.host_build import CUDA, build, compile_one, compiler, link, preload

_RUNNER = Path(__file__).parent / "host_runner.py"


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels under sanitizers; workers of one test run share them."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / "host_kernels"
    with (shared / "host_kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = folder / "libtcompile_host.so"
        if not library.exists():
            folder.mkdir(exist_ok=True)
            build(folder, sanitize=True)
    return library


def run(library: Path, count: int, seed: int, *names: str) -> subprocess.CompletedProcess[str]:
    """Cases of some ops on a library: see host_runner.py."""
    command = [sys.executable, str(_RUNNER), str(library), str(count), str(seed), *names]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **preload()}, check=False
    )


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
