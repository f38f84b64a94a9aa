"""The PTX of one kernel: made by nvcc once, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import tempfile
from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.plugins.aot_kernels import ptx
from tcompile.plugins.build import library_path
from tcompile.plugins.matrix import CUDA, find_nvcc

#: The oldest GPU that there is code for (Turing); its PTX runs on all newer ones.
OLDEST = 75


def kernel_ptx(source: str, symbol: str, architecture: int = OLDEST) -> str:
    """The PTX of one kernel of a source, and of no other: a plan keeps one for each layer.

    Args:
        source, symbol: see `aot_kernels.AotLaunch`.
        architecture: the oldest GPU that must run it, such as 87.

    Raises:
        UsageError: there is no nvcc.
        RuntimeError: it fails.
    """
    try:
        nvcc = find_nvcc()
    except RuntimeError as error:
        raise UsageError(
            "kernels compiled ahead of time need nvcc, which is not installed",
            hint="install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl",
        ) from error
    kept = library_path().parent / "ptx" / f"{source}-{architecture}-{_digest(nvcc)}.ptx"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = ptx(source, str(architecture), nvcc)
        handle, part = tempfile.mkstemp(dir=kept.parent)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(made)
        Path(part).replace(kept)
    return only(kept.read_text(encoding="ascii"), symbol)


def only(text: str, symbol: str) -> str:
    """A PTX module with one of its kernels, and without comments.

    Raises:
        ValueError: it has no kernel of that name.
    """
    text = re.sub(r"^\s*//.*\n", "", text, flags=re.MULTILINE)
    entries = re.compile(r"^(?:\.\w+ )*\.entry (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)
    if symbol not in entries.findall(text):
        raise ValueError(f"there is no kernel {symbol}")
    return entries.sub(lambda m: m[0] if m[1] == symbol else "", text)


def this_architecture() -> int:
    """Return that of this machine's first GPU; without one the oldest that the kernels know."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return OLDEST
    device, major, minor = (ctypes.c_int() for _ in range(3))
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and MINOR.
    if (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    ):
        return OLDEST
    return 10 * major.value + minor.value


def _digest(nvcc: str) -> str:
    """Return the digest of the compiler and of all sources that it can read."""
    digest = hashlib.sha256(f"{nvcc} {Path(nvcc).stat().st_mtime_ns}".encode())
    for path in sorted([*CUDA.glob("aot/*"), *CUDA.glob("*.*h"), *CUDA.glob("*.h")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
