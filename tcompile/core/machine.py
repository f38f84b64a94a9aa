"""Facts about this machine that some systems do not tell."""

from __future__ import annotations

import os
from pathlib import Path

#: Instructions that add products of bytes without an intermediate sum of 16 bits.
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


def usable_cores() -> int:
    """Cores this process may run on (which taskset or a container may have limited)."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def int8_saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether sums of products of bytes may overflow here: on x86 without VNNI. False where
    the system does not say what its processor has."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not _VNNI.intersection(flags)
