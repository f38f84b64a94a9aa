"""ptxas, the assembler of the CUDA toolkit."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tcompile.plugins.matrix import Need, find_nvcc, read_needs


def find_ptxas() -> str:
    """ptxas: beside nvcc; raises like `find_nvcc`."""
    beside = Path(find_nvcc()).resolve().with_name("ptxas")
    return str(beside) if beside.exists() else shutil.which("ptxas") or str(beside)


def assemble(ptx: str, arch: str) -> list[Need]:
    """Return what the kernels of a PTX text need on an architecture; raises like
    `compile_source`."""
    with tempfile.TemporaryDirectory(prefix="tcompile-") as folder:
        text = Path(folder) / "kernels.ptx"
        text.write_text(ptx)
        command = [find_ptxas(), f"-arch=sm_{arch}", "-v", str(text), "-o", f"{text}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas refuses the kernels for sm_{arch}: {done.stderr[-4000:]}")
    return list(read_needs(done.stderr))
