"""Facts about this machine that some systems do not tell."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores this process may run on (which taskset or a container may have limited)."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
