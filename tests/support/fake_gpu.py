# ruff: noqa: N802 - the functions have the names that CUDA gives them.
"""A GPU, CUDA's runtime and TensorRT that are none: host memory, and ONNX Runtime for an engine.

They have the functions and methods that the code calls, and no others; a test holds their names
against the real packages. An engine file of this TensorRT is an ONNX file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import tensorrt_rtx
from cuda.bindings import runtime as real

_DTYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(float16)": "HALF"}
_OK = real.cudaError_t.cudaSuccess
_SAME = (
    *("cudaError_t", "cudaDeviceAttr", "cudaMemcpyKind", "cudaMemoryType", "cudaStreamLegacy"),
    *("cudaStreamCaptureMode", "cudaStreamCaptureStatus", "cudaStreamNonBlocking"),
    "cudaEventDisableTiming",
)


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime` of a machine with one GPU, or with none.

    Attributes:
        live: addresses of what was allocated and not freed, streams, events and graphs among them.
        calls: names of the functions called.
        used: GPUs that something was done on.
    """

    def __init__(self, capability: str = "8.9", driver: int = 13000, count: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.driver, self.count = driver, count
        self.capability = [int(part) for part in capability.split(".")]
        self.live: dict[int, Any] = {}
        self.calls: list[str] = []
        self.used: set[int] = set()
        self.captured: list[Callable[[], None]] | None = None
        self.memory = 1 << 30
        self.home = 0  # the GPU whose memory all is
        self.device = 0  # of the thread
        for name in _SAME:
            setattr(self, name, getattr(real, name))

    def _new(self, thing: Any, address: int | None = None) -> int:
        key = id(thing) if address is None else address
        self.live[key] = thing
        return key

    def cudaGetDeviceCount(self) -> tuple[Any, int | None]:
        errors = real.cudaError_t
        if not self.driver or self.driver < 12000:
            return errors.cudaErrorInsufficientDriver, None
        return (_OK, self.count) if self.count else (errors.cudaErrorNoDevice, None)

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return _OK, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return _OK, 13010

    def cudaSetDevice(self, index: int) -> tuple[Any]:
        self.device = index
        return (_OK,)

    def cudaGetDevice(self) -> tuple[Any, int]:
        return _OK, self.device

    def cudaDeviceGetAttribute(self, kind: Any, index: int) -> tuple[Any, int]:
        minor = kind == real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor
        return _OK, self.capability[minor]

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return _OK, str(error.name).encode()

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        self.used.add(self.device)
        if size > self.memory:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        array = np.zeros(size + 256, np.uint8)
        array = array[-array.ctypes.data % 256 :][:size]
        return _OK, self._new(array, array.ctypes.data)

    def cudaFree(self, address: int) -> tuple[Any]:
        del self.live[address]
        return (_OK,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: Any, stream: int
    ) -> tuple[Any]:
        assert stream in self.live
        device = to if kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert size <= self.live[device].nbytes
        self.calls.append("cudaMemcpyAsync")
        ctypes.memmove(to, source, size)
        return (_OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return _OK, self._new(["stream"])

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream in (real.cudaStreamLegacy, *self.live)
        self.calls.append(f"cudaStreamSynchronize {int(stream)}")
        return (_OK,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        return self.cudaFree(stream)

    def cudaStreamIsCapturing(self, stream: int) -> tuple[Any, Any]:
        assert stream in self.live
        kinds = real.cudaStreamCaptureStatus
        active = self.captured is not None
        return _OK, (
            kinds.cudaStreamCaptureStatusActive if active else kinds.cudaStreamCaptureStatusNone
        )

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any]:
        assert stream in self.live
        assert event in self.live
        self.calls.append("cudaStreamWaitEvent")
        return (_OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return _OK, self._new(["event"])

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:
        assert event in self.live
        self.calls.append("cudaEventRecord")
        return (_OK,)

    def cudaEventSynchronize(self, event: int) -> tuple[Any]:
        assert event in self.live
        return (_OK,)

    def cudaEventDestroy(self, event: int) -> tuple[Any]:
        return self.cudaFree(event)

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, Any]:
        found = real.cudaPointerAttributes()
        found.type = real.cudaMemoryType.cudaMemoryTypeUnregistered
        for start, array in self.live.items():
            if isinstance(array, np.ndarray) and start <= address < start + array.nbytes:
                found.type, found.device = real.cudaMemoryType.cudaMemoryTypeDevice, self.home
                found.devicePointer = address
        return _OK, found

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        self.captured = []
        return (_OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:
        captured, self.captured = self.captured, None
        return _OK, self._new(captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:
        return _OK, self._new(list(self.live[graph]))

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:
        return self.cudaFree(graph)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any]:
        return self.cudaFree(graph)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any]:
        self.calls.append("cudaGraphLaunch")
        for work in self.live[graph]:
            work()
        return (_OK,)


class FakeContext:
    """An `IExecutionContext`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changes = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changes += 1
        dims = self._engine.get_tensor_shape(name)
        if -1 in dims and not 1 <= shape[0] <= self._engine.largest:
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next((shape[0] for shape in self._shapes.values()), -1)
        return tuple(batch if d < 0 else d for d in self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changes += 1
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._engine.cuda
        cuda.used.add(cuda.device)
        if cuda.captured is not None:
            changes = self._changes
            cuda.captured.append(lambda: self._run(changes))
        else:
            self._run(self._changes)
        return True

    def _run(self, changes: int) -> None:
        assert changes == self._changes, "a graph runs after its context changed"
        names = [value.name for value in self._engine.session.get_outputs()]
        feed = {i.name: self._view(i.name) for i in self._engine.session.get_inputs()}
        for name, array in zip(names, self._engine.session.run(names, feed), strict=True):
            self._view(name)[...] = array

    def _view(self, name: str) -> np.ndarray[Any, Any]:
        shape = self.get_tensor_shape(name)
        dtype = {"FLOAT": "f4", "INT64": "i8", "HALF": "f2"}[
            self._engine.get_tensor_dtype(name).name
        ]
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._engine.cuda.live[self._addresses[name]]
        return memory[:count].view(dtype).reshape(shape)  # type: ignore[no-any-return]


class FakeEngine:
    """An `ICudaEngine` for batches of 1 to `largest`."""

    largest = 4

    def __init__(self, cuda: FakeCuda, plan: bytes) -> None:
        self.cuda = cuda
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self._inputs = {v.name: v for v in self.session.get_inputs()}
        self._all = {**self._inputs, **{v.name: v for v in self.session.get_outputs()}}

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = tensorrt_rtx.TensorIOMode
        return modes.INPUT if name in self._inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(tensorrt_rtx.DataType, _DTYPES[self._all[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self._all[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        dims = self.get_tensor_shape(name)
        return [tuple(size if d < 0 else d for d in dims) for size in (1, 1, self.largest)]

    def create_runtime_config(self) -> Any:
        return tensorrt_rtx_config()

    def create_execution_context(self, config: Any = None) -> FakeContext:
        self.config = config
        return FakeContext(self)


def tensorrt_rtx_config() -> Any:
    """An object with the settings of an `IRuntimeConfig`, and no others."""
    names = [n for n in dir(tensorrt_rtx.IRuntimeConfig) if not n.startswith("_")]
    return type("Config", (), {"__slots__": names})()


def fake_tensorrt(cuda: FakeCuda, name: str = "tensorrt", version: str = "10.3.0") -> ModuleType:
    """A module `tensorrt` or `tensorrt_rtx`, whose `opened` lists the engines opened; `allowed`
    whether host code was, for each; `lean` the lean runtimes loaded, none where one is empty."""
    module = ModuleType(name)
    opened: list[FakeEngine] = []
    allowed: list[bool] = []
    lean: list[str] = []

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.engine_host_code_allowed = False

        def load_runtime(self, path: str) -> Runtime | None:
            lean.append(path)
            return Runtime(self.logger) if Path(path).stat().st_size else None

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            allowed.append(self.engine_host_code_allowed)
            try:
                opened.append(FakeEngine(cuda, plan))
            except Exception:  # whatever ONNX Runtime raises
                self.logger.log(tensorrt_rtx.ILogger.ERROR, "the magic tag does not match")
                return None
            return opened[-1]

    contents = {
        "__version__": version,
        "Runtime": Runtime,
        "opened": opened,
        "allowed": allowed,
        "lean": lean,
        **{n: getattr(tensorrt_rtx, n) for n in ("ILogger", "TensorIOMode", "CudaGraphStrategy")},
    }
    vars(module).update(contents)
    return module
