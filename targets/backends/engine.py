"""Running a built engine from Python: TensorRT and TensorRT-RTX, whose APIs are the same for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets.backends.base import Array, fitted
from tcompile.targets.backends.cuda import Gpu
from tcompile.targets.backends.trt_common import deserialise, title

#: What TensorRT calls a type → numpy's.
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype("float32"),
    "HALF": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT64": np.dtype("int64"),
    "INT32": np.dtype("int32"),
    "INT8": np.dtype("int8"),
    "UINT8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}


class EngineRunner:
    """One engine on one GPU, with buffers for its largest batch. Runs one thing at a time: of
    several threads that call `run`, each waits for the one before it.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        path: the engine, checked before: TensorRT reads what it is given.
        gpu: to run it on.
        graphs: launch the engine as one CUDA graph. TensorRT-RTX captures it itself; of TensorRT it
            is captured here, for the batch size of the last run.
        host_code, lean_runtime: of a version-compatible engine; see `deserialise`.

    Attributes:
        batches: the smallest and largest batch that the engine takes; None: its batch is fixed.

    Raises:
        ModelError: TensorRT does not accept the file.
        UsageError: it does not load the lean runtime.
        TcompileError: CUDA has no memory for it, say.
    """

    metadata: Mapping[str, str] = {}

    def __init__(
        self,
        trt: ModuleType,
        path: Path,
        gpu: Gpu,
        *,
        graphs: bool = False,
        host_code: bool = False,
        lean_runtime: Path | None = None,
    ) -> None:
        self.path = path
        self._gpu, self._turn = gpu, Lock()
        gpu.use()
        needed = deserialise(trt, path, host_code=host_code, lean_runtime=lean_runtime)
        self._runtime, engine = needed
        self._engine: Any = engine
        self._context: Any = _context(trt, engine, graphs)
        if self._context is None:
            raise TcompileError(f"{title(trt)} has no memory for the engine", where=str(path))
        own = trt.__name__ == "tensorrt_rtx"
        self._graphs, self._graph = graphs and not own, None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        takes = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        self._dtypes = {n: _dtype(engine.get_tensor_dtype(n), n, path) for n in names}
        self.inputs = tuple(self._info(n) for n in names if n in takes)
        self.outputs = tuple(self._info(n) for n in names if n not in takes)
        free = [i.name for i in self.inputs if i.shape and isinstance(i.shape[0], str)]
        profile = engine.get_tensor_profile_shape(free[0], 0) if free else None
        self.batches = (int(profile[0][0]), int(profile[2][0])) if profile else None
        self._buffers: dict[str, int] = {}
        self._stream: Any = None
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once; as `OrtRunner.run`.

        Raises:
            UsageError: an input is missing, unknown, or has a shape that the engine does not take.
            TcompileError: CUDA or TensorRT fails.
        """
        arrays = fitted(feed, self.inputs, self.path)
        gpu = self._gpu
        with self._turn:
            if self._context is None:
                raise UsageError("the engine is closed", where=str(self.path))
            gpu.use()  # what a thread uses is its own matter
            for name, array in arrays.items():
                self._set_shape(name, array.shape)
                gpu.upload(self._buffers[name], array, self._stream)
            self._launch({name: array.shape for name, array in arrays.items()})
            found = {
                o.name: gpu.download(
                    self._buffers[o.name],
                    tuple(self._context.get_tensor_shape(o.name)),
                    self._dtypes[o.name],
                    self._stream,
                )
                for o in self.outputs
            }
            gpu.call("cudaStreamSynchronize", self._stream)
            return found

    def close(self) -> None:
        """Free what it has on the GPU; it cannot be run any more."""
        with self._turn:
            self._forget_graph()
            for buffer in self._buffers.values():
                self._gpu.call("cudaFree", buffer)
            if self._stream is not None:
                self._gpu.call("cudaStreamDestroy", self._stream)
            self._buffers, self._stream = {}, None
            # In this order: each needs the one behind it.
            self._context = self._engine = self._runtime = None

    def _info(self, name: str) -> TensorInfo:
        dims = tuple(self._engine.get_tensor_shape(name))
        shape = tuple("batch" if d < 0 else int(d) for d in dims)
        return TensorInfo(name, str(self._dtypes[name]), shape)

    def _allocate(self) -> None:
        """Make the stream, and buffers of the largest size, whose addresses then stay."""
        self._stream = self._gpu.stream()
        for tensor in self.inputs:
            if any(isinstance(dim, str) for dim in tensor.shape):
                largest = self._engine.get_tensor_profile_shape(tensor.name, 0)[2]
                self._set_shape(tensor.name, tuple(largest))
        for tensor in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            size = math.prod(shape) * self._dtypes[tensor.name].itemsize
            self._buffers[tensor.name] = int(self._gpu.call("cudaMalloc", max(size, 1)))
            self._context.set_tensor_address(tensor.name, self._buffers[tensor.name])

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            span = "" if self.batches is None else f", for batches of {self.batches[0]} to "
            span += "" if self.batches is None else f"{self.batches[1]}"
            raise UsageError(
                f"the engine does not take {list(shape)} for input '{name}'{span}",
                where=str(self.path),
            )

    def _launch(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if self._graphs and shapes == self._shapes and self._graph is not None:
            self._gpu.call("cudaGraphLaunch", self._graph, self._stream)
            return
        # Also before it is captured: the first run of a shape does what no graph may hold.
        self._forget_graph()
        self._enqueue()
        if self._graphs:
            self._gpu.call("cudaStreamSynchronize", self._stream)
            self._graph = self._gpu.capture(self._stream, self._enqueue)
            self._shapes = shapes

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise TcompileError("TensorRT cannot run the engine", where=str(self.path))

    def _forget_graph(self) -> None:
        # A graph is for the shapes that it was captured with, and for them alone.
        if self._graph is not None:
            self._gpu.call("cudaGraphExecDestroy", self._graph)
        self._graph = self._shapes = None


def _context(trt: ModuleType, engine: Any, graphs: bool) -> Any:
    """An execution context; TensorRT-RTX, which compiles kernels as they are first needed, is told
    to capture graphs itself, since it knows when they are all there."""
    if not graphs or trt.__name__ != "tensorrt_rtx":
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


def _dtype(found: Any, name: str, path: Path) -> np.dtype[Any]:
    try:
        return _DTYPES[found.name]
    except KeyError:
        raise ModelError(
            f"tensor '{name}' is {found.name}, which numpy does not have", where=str(path)
        ) from None
