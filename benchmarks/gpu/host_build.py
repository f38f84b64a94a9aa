"""The kernels as a shared library for the processor, for tests: cuda/host/ stands in for CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tcompile.plugins.matrix import CUDA

#: What the library consists of.
SOURCES = (
    "check.cpp",
    "launch.cpp",
    "select.cu",
    "gather.cu",
    "fuse.cu",
    "merge.cu",
    "match.cu",
    "host/fibers.cpp",
    "host/cuda_host.cpp",
)
#: The ahead-of-time form, in a library of its own.
AOT_SOURCES = (
    "aot/select.cu",
    "aot/gather.cu",
    "aot/fuse.cu",
    "aot/merge.cu",
    "aot/match.cu",
    "host/fibers.cpp",
    "host/cuda_host.cpp",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Werror",
    "-ffp-contract=off",
)


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, g++ or none."""
    return os.environ.get("CXX") or shutil.which("g++")


def build(folder: Path, *, sanitize: bool = False, sources: Sequence[str] = SOURCES) -> Path:
    """Compile the kernels into a library in a folder; its path.

    Args:
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer. Numpy's memory is what the
            kernels run on, so that an access beyond a tensor is seen; see `preload`.
        sources: `SOURCES` or `AOT_SOURCES`.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    for name in sources:
        compile_one(CUDA / name, folder, sanitize=sanitize)
    return link(folder, sanitize=sanitize)


def compile_one(
    source: Path, folder: Path, *, sanitize: bool = False, optimise: str = "-O1"
) -> None:
    """One object file, named after its source; raises like `build`."""
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    root = source.parent.parent if source.parent.name in ("host", "aot") else source.parent
    _run(
        [
            _cxx(),
            *_flags(sanitize),
            optimise,
            "-I",
            str(root),
            "-c",
            *language,
            str(source),
            "-o",
            str(folder / f"{source.stem}.o"),
        ]
    )


def link(folder: Path, *, sanitize: bool = False) -> Path:
    """The library of the object files in a folder; raises like `build`."""
    library = folder / "libtcompile_host.so"
    _run(
        [
            _cxx(),
            *_flags(sanitize),
            "-shared",
            *map(str, sorted(folder.glob("*.o"))),
            "-o",
            str(library),
        ]
    )
    return library


def _flags(sanitize: bool) -> list[str]:
    return [*_FLAGS, *(SANITIZERS if sanitize else ())]


def _cxx() -> str:
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("no C++ compiler: install g++ or set CXX")
    return cxx


def preload() -> dict[str, str]:
    """Environment in which python can load a sanitized library."""
    names = ("libasan.so", "libubsan.so")
    found = [_run([_cxx(), f"-print-file-name={name}"]).strip() for name in names]
    return {
        "LD_PRELOAD": " ".join(found),
        # Python itself never gives everything back; numpy is built without it.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def _run(command: list[str]) -> str:
    """Return what a command prints; raises like `build`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
