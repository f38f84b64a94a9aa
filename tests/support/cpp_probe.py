"""`tests/unit/examples/probe.cpp`, compiled: it runs parts of tcompile_runtime.hpp."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "examples" / "cpp" / "tcompile_runtime.hpp"
Probe = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]


def compiled_probe(folders: pytest.TempPathFactory) -> Probe:
    """A function that answers jobs, compiled once a session; skips without a compiler or nlohmann's
    JSON."""
    return _compiled(folders.getbasetemp())


@lru_cache(maxsize=1)
def _compiled(base: Path) -> Probe:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = base / "probe"
    folder.mkdir(exist_ok=True)
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}"]
    source = ROOT / "tests" / "unit" / "examples" / "probe.cpp"
    done = subprocess.run(
        [*command, str(source), "-o", str(folder / "probe")], capture_output=True, text=True
    )
    if "nlohmann/json.hpp" in done.stderr:
        pytest.skip("nlohmann's JSON is not installed: apt install nlohmann-json3-dev")
    assert done.returncode == 0, done.stderr

    def run(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        (folder / "jobs.json").write_text(json.dumps(jobs))
        done = subprocess.run([folder / "probe", folder / "jobs.json"], capture_output=True)
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        assert len(answers) == len(jobs)
        return answers

    return run
