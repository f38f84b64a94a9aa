"""CUDA's runtime through cuda-python: what running an engine needs of one GPU, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.packages import require
from tcompile.targets.backends.buffers import Buffer

_PURPOSE = "running an engine from Python"
#: Addresses that TensorRT takes are multiples of it.
_ALIGNED = 256


class Gpu:
    """One GPU of this machine.

    Args:
        index: which, as CUDA counts them.

    Attributes:
        compute_capability: e.g. `8.9`.

    Raises:
        MissingExtraError: cuda-python is not installed.
        UsageError: no driver, one that is too old, or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda: Any = require("cuda.bindings.runtime", "cuda", _PURPOSE)
        self.index = index
        count = self._count()
        if not 0 <= index < count:
            raise UsageError(
                f"there is no GPU {index}, only 0 to {count - 1}", where=f"device={index}"
            )
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", kind, index)
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.compute_capability = f"{major}.{minor}"

    def _count(self) -> int:
        error, count = self._cuda.cudaGetDeviceCount()
        if error == self._cuda.cudaError_t.cudaSuccess and count:
            return int(count)
        _, driver = self._cuda.cudaDriverGetVersion()
        if not driver:
            raise UsageError("this machine has no NVIDIA driver")
        if error == self._cuda.cudaError_t.cudaErrorInsufficientDriver:
            raise UsageError(
                f"the NVIDIA driver is for CUDA {_version(driver)}, cuda-python for "
                f"{_version(self._cuda.cudaRuntimeGetVersion()[1])}",
                hint="update the driver, or install an older cuda-bindings",
            )
        raise UsageError("this machine has an NVIDIA driver, but no GPU that this process may use")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of CUDA's runtime; returns what it gives beside its error code.

        Raises:
            TcompileError: it fails; names it and says CUDA's reason.
        """
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            reason = self._cuda.cudaGetErrorString(error)[1]
            text = reason.decode() if isinstance(reason, bytes) else str(reason)
            raise TcompileError(f"{name} failed: {text}", where=f"GPU {self.index}")
        return values[0] if values else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make it the GPU of the calling thread, for a while: PyTorch, say, goes by that too."""
        before = int(self.call("cudaGetDevice"))
        if before != self.index:
            self.call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index:
                self.call("cudaSetDevice", before)

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self.call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    def event(self) -> Any:
        """A mark in a stream, which tells no time."""
        return self.call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)

    def wait_for_default_stream(self) -> None:
        """Wait for it, and with it for all streams that are not apart from it."""
        self.call("cudaStreamSynchronize", self._cuda.cudaStreamLegacy)

    def is_capturing(self, stream: Any) -> bool:
        """Tell whether a graph is made of what is put into the stream."""
        none = self._cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
        return bool(self.call("cudaStreamIsCapturing", stream) != none)

    def upload(self, to: int, buffer: Buffer, stream: Any) -> None:
        """Copy a buffer in the CPU's memory to the GPU, in the order of the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", to, buffer.address, buffer.size, kind, stream)

    def download(self, source: int, buffer: Buffer, stream: Any) -> None:
        """Copy to a buffer in the CPU's memory, in the order of the stream: wait before it is
        read."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", buffer.address, source, buffer.size, kind, stream)

    def address(self, buffer: Buffer, what: str) -> int | None:
        """Where the GPU has a buffer; None: in the CPU's memory, to be copied.

        Args:
            what: it is, for messages.

        Raises:
            UsageError: it does not lie where it is said to, or where TensorRT does not take it.
        """
        kinds = self._cuda.cudaMemoryType
        found = self.call("cudaPointerGetAttributes", buffer.address)
        device, there = found.type == kinds.cudaMemoryTypeDevice, int(found.devicePointer or 0)
        if not buffer.on_gpu and not device:
            return None
        if not buffer.on_gpu:
            fault = f"is said to be in the CPU's memory, and is in that of GPU {found.device}"
        elif found.type == kinds.cudaMemoryTypeUnregistered or not there:
            fault = "is said to be in the memory of a GPU, and is not"
        elif device and found.device != self.index:
            fault = f"is in the memory of GPU {found.device}, the engine runs on GPU {self.index}"
        elif there % _ALIGNED:
            fault = f"lies at an address that is not a multiple of {_ALIGNED}, as TensorRT wants it"
        else:
            return there
        raise UsageError(fault, where=what)

    def capture(self, stream: Any, work: Any) -> Any:
        """What `work` puts into the stream, as a graph that can be launched again and again."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            graph = self.call("cudaStreamEndCapture", stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)


def _version(number: int) -> str:
    """13010 → `13.1`."""
    return f"{number // 1000}.{number % 1000 // 10}"
