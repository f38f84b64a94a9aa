"""Tensors in memory of the caller's: where a runtime reads its inputs and writes its outputs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np

from tcompile.core.errors import UsageError
from tcompile.targets.backends.base import Array, Opened


@dataclass(frozen=True)
class Buffer:
    """A tensor by its address, row after row without gaps; the caller keeps its memory.

    Attributes:
        dtype: as numpy calls it.
        on_gpu: in memory that the GPU reads and writes; else in the CPU's.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    on_gpu: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


class InPlace(Opened, Protocol):
    """A model that is open in a runtime which runs it in memory of the caller's."""

    def run_buffers(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: int
    ) -> None:
        """One run, from all inputs to those outputs that are given; names, dtypes and shapes were
        checked.

        Args:
            stream: a cudaStream_t that the run is put into; 0: it waits until all is done.
        """
        ...


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """By its name, those that numpy itself does not have too."""
    return np.dtype(getattr(ml_dtypes, name, name))


def buffer_of(array: Array) -> Buffer:
    """Of a contiguous array."""
    return Buffer(array.ctypes.data, array.dtype.name, array.shape)


def array_at(buffer: Buffer) -> Array:
    """A view of one in the CPU's memory."""
    raw = (ctypes.c_uint8 * buffer.size).from_address(buffer.address)
    found: Array = np.frombuffer(memoryview(raw), np.uint8)
    return found.view(numpy_dtype(buffer.dtype)).reshape(buffer.shape)


def check_on_cpu(
    title: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: int
) -> None:
    """Raise UsageError for what only a GPU has."""
    for kind, buffers in (("input", inputs), ("output", outputs)):
        for name, buffer in buffers.items():
            if buffer.on_gpu:
                raise UsageError(
                    f"is in the memory of a GPU, and {title} runs on the CPU",
                    where=f"{kind} '{name}'",
                    hint="copy it to the CPU's; or build for a GPU: its engine takes both",
                )
    if stream:
        raise UsageError(
            f"{title} runs on the CPU, which has no streams", where="stream", hint="give none"
        )
