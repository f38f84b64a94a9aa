"""Building the TensorRT plugin library from the sources in this package, and where it lies then."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tcompile._version import __version__
from tcompile.core.cache import cache_dir
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.machine import usable_cores
from tcompile.core.progress import Progress, silent

LIBRARY = "libtcompile_plugins.so"
#: The CMake project: kernels in cuda/, the library in trt/.
SOURCES = Path(__file__).resolve().parent
#: CMake's oldest that the project takes.
CMAKE = (3, 24)
#: Where a header of TensorRT is looked for, beside TENSORRT_ROOT: Debian and JetPack packages.
_HEADERS = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)


@dataclass(frozen=True)
class Tools:
    """The tools of this machine that a build needs.

    Attributes:
        cmake, nvcc: paths of the programs.
        root: what TENSORRT_ROOT is to be, or None where CMake finds the headers by itself.
    """

    cmake: str
    nvcc: str
    root: Path | None


def library_path() -> Path:
    """Return where `tcompile plugins build` puts the library: the cache, one for each version."""
    return cache_dir() / "plugins" / __version__ / LIBRARY


def built_library() -> Path:
    """The library that was built, or that TCOMPILE_PLUGINS names.

    Raises:
        UsageError: there is none.
    """
    named = os.environ.get("TCOMPILE_PLUGINS")
    path = Path(named) if named else library_path()
    if not path.is_file():
        raise UsageError(
            f"there is no plugin library at {path}",
            hint="`tcompile plugins build` makes one; TCOMPILE_PLUGINS names another",
        )
    return path


def find_tools(tensorrt_root: str | Path | None = None) -> Tools:
    """Look for CMake, nvcc and TensorRT's headers.

    Args:
        tensorrt_root: where TensorRT is unpacked; TENSORRT_ROOT otherwise.

    Raises:
        UsageError: one of them is missing or too old; says which and how to get it.
    """
    return Tools(cmake_program(), nvcc_program(), tensorrt_headers(tensorrt_root))


def cmake_program() -> str:
    """The path of CMake. Raises `UsageError` where it is missing or too old."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise UsageError(
            "building plugins needs CMake, which is not installed",
            hint="apt install cmake, or pip install cmake",
        )
    text = _output(cmake, "--version")
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < CMAKE:
        raise UsageError(
            f"building plugins needs CMake {CMAKE[0]}.{CMAKE[1]} or newer, {cmake} is "
            f"{found[0] if found else 'of an unknown version'}",
            hint="pip install cmake",
        )
    return cmake


def nvcc_program() -> str:
    """The path of nvcc. Raises `UsageError` where it is missing."""
    nvcc = (
        os.environ.get("CUDACXX")
        or shutil.which("nvcc")
        or _first("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
    )
    if nvcc is None or shutil.which(nvcc) is None:
        raise UsageError(
            "building plugins needs nvcc, which is not installed",
            hint="install the CUDA toolkit, or name the compiler in CUDACXX",
        )
    return nvcc


def tensorrt_headers(tensorrt_root: str | Path | None = None) -> Path | None:
    """The folder that TENSORRT_ROOT is to be, None where CMake finds the headers by itself.

    Raises `UsageError` where there are none.
    """
    root = tensorrt_root or os.environ.get("TENSORRT_ROOT")
    folders = [Path(root) / "include", Path(root)] if root else [Path(p) for p in _HEADERS]
    if not any((f / "NvInfer.h").is_file() for f in folders):
        where = str(Path(root)) if root else "the usual places"
        raise UsageError(
            f"building plugins needs TensorRT's headers: no NvInfer.h in {where}",
            hint="apt install libnvinfer-headers-dev, or --tensorrt DIR with DIR/include/NvInfer.h",
        )
    return Path(root).resolve() if root else None


def architectures(text: str) -> str:
    """CMake's list of GPU architectures from `87`, `8.7`, `sm_87,110` or `native`.

    Raises:
        UsageError: something else.
    """
    if text == "native":
        return text
    names = [re.sub(r"^sm_?", "", name.strip()).replace(".", "") for name in text.split(",")]
    if not all(re.fullmatch(r"\d{2,3}a?", name) for name in names):
        raise UsageError(
            f"'{text}' is not a GPU architecture", where="--arch", hint="such as 87, 8.7, or 87,110"
        )
    return ";".join(names)


def build_library(
    output: str | Path | None = None,
    arch: str = "native",
    tensorrt_root: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Configure and build the library; returns where it is.

    Args:
        output: folder to put it into; the user's cache by default.
        arch: see `architectures`; `native` is this machine's GPU.
        tensorrt_root: see `find_tools`.

    Raises:
        UsageError: a tool is missing.
        TcompileError: CMake or a compiler failed; the message has its last error, the log the rest.
    """
    if sys.platform == "win32":
        raise UsageError(
            "the plugin library is built on Linux only",
            hint="--token-ops native, the default, needs no library",
        )
    tools = find_tools(tensorrt_root)
    chosen = architectures(arch)
    if (
        chosen == "native"
        and shutil.which("nvidia-smi") is None
        and not Path("/proc/device-tree/model").exists()
    ):
        raise UsageError(
            "this machine has no GPU to build for",
            where="--arch",
            hint="name the architecture: --arch 87 for Jetson Orin",
        )
    final = Path(output) / LIBRARY if output is not None else library_path()
    final.parent.mkdir(parents=True, exist_ok=True)
    # One folder an architecture. `--fresh` forgets which headers and compiler were found before.
    work = library_path().parent / f"build-{chosen.replace(';', '-')}"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "build.log"
    configure = [
        tools.cmake,
        "-S",
        str(SOURCES),
        "-B",
        str(work),
        "--fresh",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_COMPILER={tools.nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={chosen}",
        f"-DTCOMPILE_PACKAGE_VERSION={__version__}",
    ]
    if tools.root is not None:
        configure.append(f"-DTENSORRT_ROOT={tools.root}")
    with log.open("w", encoding="utf-8") as stream:
        for name, command in (
            ("configuring", configure),
            ("compiling", [tools.cmake, "--build", str(work), "--parallel", str(_cores())]),
        ):
            progress(name)
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise TcompileError(
                    f"{name} the plugin library failed: {_last_error(log)}", where=str(log)
                )
    made = next(iter(sorted(work.rglob(LIBRARY))), None)
    if made is None:
        raise TcompileError(f"the build made no {LIBRARY}", where=str(log))
    part = final.with_suffix(".part")
    shutil.copy2(made, part)
    part.replace(final)
    return final


def _cores() -> int:
    # A compiler of templates takes about 1 GB: a Jetson would swap with one for every core.
    return max(1, min(4, usable_cores()))


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (wrong or lines or ["it said nothing"])[0].strip()


def _output(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return done.stdout


def _first(*paths: str) -> str | None:
    return next((path for path in paths if Path(path).is_file()), None)
