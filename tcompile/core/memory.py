"""Memory that is given back between two stages that each hold all weights of a model."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def release() -> None:
    """Give back what is no longer used.

    Nodes and tensors of a graph refer to each other, so that only the collector frees them; and
    blocks of up to 32 MiB, which most weights are, stay with the C library once they are free.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it, and needs it
        ctypes.CDLL(None).malloc_trim(0)
