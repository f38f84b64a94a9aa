"""`tcompile doctor` as a function: what is on this machine, what it enables, and what is missing.

Nothing heavy is imported here: versions are read from the metadata of packages, and the runtimes,
whose libraries may fail to load, are imported in processes of their own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tcompile._version import __version__
from tcompile.core.cache import cache_dir
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.packages import OPTIONAL, Package
from tcompile.targets.compatibility import LEAN_RUNTIME, older_words

#: `unused`: not here, and nothing on this machine could use it.
State = Literal["ok", "missing", "too old", "broken", "unused"]
#: Versions of Python that are tested.
PYTHON = ((3, 10), (3, 13))
#: Packages whose libraries are loaded to see that they can be.
_LOADED = ("onnxruntime", "openvino", "tensorrt-rtx", "tensorrt")
_LOAD = """
import importlib, json, sys
sys.path[:] = [p for p in sys.path if p]  # not the modules of whatever folder this is
module = importlib.import_module(sys.argv[1])
providers = getattr(module, "get_available_providers", list)()
print(json.dumps([str(getattr(module, "__version__", "")), list(providers)]))
"""
#: Seconds after which a process that loads a package, or a tool, is given up.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        group: runtimes, packages, GPU, compilers or tcompile.
        name: what was looked for.
        state: what became of it.
        detail: its version or place, or what is wrong with it.
        enables: what it is for.
        remedy: the command or step that adds it; empty where there is nothing to do.
    """

    group: str
    name: str
    state: State
    detail: str
    enables: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that was found on this machine."""

    tcompile: str
    python: str
    system: str
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return asdict(self)


def doctor() -> Diagnosis:
    """Look for runtimes, GPUs, compilers, optional packages, the plugin library and the cache."""
    checks: list[Callable[[], Iterator[Finding]]] = [_gpu, _tools, _library, _engines, _cache]
    with ThreadPoolExecutor() as pool:
        packages = list(pool.map(_package, OPTIONAL))
        others = [f for check in checks for f in _guarded(check)]
    return Diagnosis(
        tcompile=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        findings=(*_guarded(_python), *packages, *others),
    )


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; one that says so where looking itself fails."""
    try:
        return list(check())
    except Exception as error:  # A machine in an odd state is what is to be reported.
        name = check.__name__.strip("_")
        return [Finding("tcompile", name, "broken", f"{type(error).__name__}: {error}")]


# ---- packages ------------------------------------------------------------------------------------


def _package(package: Package) -> Finding:
    group = "runtimes" if package.name in _LOADED else "packages"
    add = f"pip install 'tcompile[{package.extra}]'"
    names = [n for n in (package.name, *package.others) if _version(n)]
    if not names:
        elsewhere = _not_for_here(package)
        if elsewhere:
            return Finding(group, package.name, "unused", elsewhere, package.enables)
        return Finding(group, package.name, "missing", "", package.enables, add)
    name = names[0]
    version = _version(name)
    detail = version if name == package.name else f"{version} ({name})"
    if len(names) > 1:
        twice = f"{' and '.join(names)} overwrite each other's files"
        keep = f"pip uninstall {' '.join(names)}, then install one of them"
        return Finding(group, package.name, "broken", twice, package.enables, keep)
    if package.name in _LOADED:
        loaded, problem = _load(package.module)
        if problem:
            again = f"pip install --force-reinstall {name}"
            return Finding(group, package.name, "broken", problem, package.enables, again)
        detail = f"{detail}: {loaded}" if loaded else detail
    if package.least and _numbers(version) < _numbers(package.least):
        old = f"{version}, {package.least} or newer is needed"
        return Finding(group, package.name, "too old", old, package.enables, f"{add} --upgrade")
    return Finding(group, package.name, "ok", detail, package.enables)


def _not_for_here(package: Package) -> str:
    """Return why a package that is missing is of no use on this machine; empty if it is."""
    if package.name == "tensorrt" and not Path("/proc/device-tree/model").exists():
        return "this machine is not a Jetson"
    return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name) or ""
    except metadata.PackageNotFoundError:
        return ""


def _load(module: str) -> tuple[str, str]:
    """Import a module in a process of its own; what it tells of itself, or what went wrong."""
    done = _run(sys.executable, "-c", _LOAD, module)
    if done is None:
        return "", f"importing it takes more than {_PATIENCE:.0f} s"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        ended = f"importing it ended the process ({done.returncode})"
        return "", said[-1] if said and done.returncode > 0 else ended
    _, providers = json.loads(done.stdout.strip().splitlines()[-1])
    return ", ".join(p.removesuffix("ExecutionProvider") for p in providers), ""


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


# ---- the machine ---------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    low, high = (".".join(map(str, v)) for v in PYTHON)
    inside = PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]
    detail = platform.python_version() + ("" if inside else f", tested are {low} to {high}")
    yield Finding("tcompile", "python", "ok" if inside else "broken", detail)
    if platform.system() not in ("Linux", "Windows"):
        what = f"{platform.system()} is not tested; see docs/support.md"
        yield Finding("tcompile", "system", "broken", what)


def _gpu() -> Iterator[Finding]:
    use = "running engines, measuring on the GPU"
    board = Path("/proc/device-tree/model")
    if board.exists():
        name = board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        yield Finding("GPU", "board", "ok", name, use)
        return
    if shutil.which("nvidia-smi") is None:
        detail = "no nvidia-smi: this machine has no NVIDIA GPU, or no driver for it"
        yield Finding("GPU", "NVIDIA GPU", "missing", detail, use, "install NVIDIA's driver")
        return
    fields = "name,driver_version,compute_cap,memory.total"
    done = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    if done is None or done.returncode or not done.stdout.strip():
        said = "" if done is None else (done.stdout + done.stderr).strip().splitlines()
        reason = said[0] if said else "it does not answer"
        yield Finding("GPU", "NVIDIA GPU", "broken", f"nvidia-smi: {reason}", use)
        return
    for i, line in enumerate(done.stdout.strip().splitlines()):
        name, driver, capability, memory = (c.strip() for c in f"{line},,,".split(",")[:4])
        detail = f"{name}, driver {driver}, compute capability {capability}, {memory}"
        yield Finding("GPU", f"GPU {i}", "ok", detail, use)


def _tools() -> Iterator[Finding]:
    from tcompile.plugins import build

    use = "tcompile plugins build"
    if sys.platform == "win32":
        yield Finding("compilers", "plugins", "unused", "they are built on Linux only", use)
        return
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("cmake", build.cmake_program),
        ("nvcc", build.nvcc_program),
        ("TensorRT headers", build.tensorrt_headers),
    )
    for name, find in checks:
        try:
            place = find()
        except UsageError as error:
            yield Finding("compilers", name, "missing", error.what, use, error.hint)
        else:
            yield Finding("compilers", name, "ok", str(place or "in the usual place"), use)
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler:
        yield Finding("compilers", "C++", "ok", compiler, use)
    else:
        yield Finding("compilers", "C++", "missing", "no g++", use, "apt install g++")


# ---- tcompile ------------------------------------------------------------------------------------


def _library() -> Iterator[Finding]:
    from tcompile.plugins.build import built_library
    from tcompile.plugins.check import check_library

    use = "--token-ops plugin"
    if sys.platform == "win32":
        return
    try:
        path = built_library()
        report = check_library(path)
    except TcompileError as error:
        missing = Finding("tcompile", "plugin library", "missing", error.what, use)
        yield Finding(**{**asdict(missing), "remedy": "tcompile plugins build"})
        return
    if report.problems:
        problem = f"{path}: {report.problems[0]}"
        yield Finding(
            "tcompile", "plugin library", "broken", problem, use, "tcompile plugins build"
        )
    else:
        yield Finding("tcompile", "plugin library", "ok", str(path), use)


def _engines() -> Iterator[Finding]:
    """Engines of other versions that the installed TensorRT runs; nothing without one."""
    use = "tcompile.load, check.sh of a bundle"
    if version := _version("tensorrt"):
        detail = f"those of TensorRT {version}; version-compatible ones of {older_words(version)}"
        yield Finding("tcompile", "engines", "ok", detail, use)
    if named := os.environ.get(LEAN_RUNTIME):
        there = Path(named).is_file()
        detail = f"{LEAN_RUNTIME}={named}{'' if there else ', which is not there'}"
        yield Finding("tcompile", "lean runtime", "ok" if there else "broken", detail, use)


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    use = "profiles and losses that were measured"
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        yield Finding("tcompile", "cache", "ok", str(folder), use)
    else:
        detail = f"{there} is not a folder that can be written to; nothing is kept"
        remedy = "set TCOMPILE_CACHE to a folder of yours"
        yield Finding("tcompile", "cache", "broken", detail, use, remedy)


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program; None where it takes too long or cannot be started."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
