"""Running a built engine from Python: TensorRT and TensorRT-RTX, whose APIs are the same for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets.backends.base import Array, fitted
from tcompile.targets.backends.buffers import Buffer, buffer_of
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
        path: the engine's file, for messages.
        plan: what it holds, checked before: TensorRT reads what it is given.
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
        plan: bytes,
        gpu: Gpu,
        *,
        graphs: bool = False,
        host_code: bool = False,
        lean_runtime: Path | None = None,
    ) -> None:
        self.path = path
        self._gpu, self._turn = gpu, Lock()
        with gpu.used():
            needed = deserialise(trt, path, plan, host_code=host_code, lean_runtime=lean_runtime)
            self._open(trt, needed, graphs)

    def _open(self, trt: ModuleType, needed: tuple[Any, Any], graphs: bool) -> None:
        path = self.path
        self._runtime, engine = needed
        self._engine: Any = engine
        self._context: Any = _context(trt, engine, graphs)
        if self._context is None:
            raise TcompileError(f"{title(trt)} has no memory for the engine", where=str(path))
        own = trt.__name__ == "tensorrt_rtx"
        self._graphs, self._graph = graphs and not own, None
        # Of the last run, and what the graph is for.
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
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
        self._done: Any = None  # with the last run: the engine has memory for one at a time
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
        with self._turn, self._gpu.used():
            if self._context is None:
                raise UsageError("the engine is closed", where=str(self.path))
            given = {name: buffer_of(array) for name, array in arrays.items()}
            self._set_shapes(given)
            found = {
                o.name: np.empty(
                    tuple(self._context.get_tensor_shape(o.name)), self._dtypes[o.name]
                )
                for o in self.outputs
            }
            self._execute(given, {name: buffer_of(array) for name, array in found.items()}, 0)
            return found

    def used(self) -> AbstractContextManager[None]:
        """Its GPU, as the calling thread's: PyTorch shows no tensors of another than that."""
        return self._gpu.used()

    def run_buffers(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: int
    ) -> None:
        """Run it in memory of the caller's; see `InPlace`. What is in the CPU's is copied, in the
        order of the stream.

        Raises:
            UsageError: a shape that the engine does not take or give, or memory that is not where
                it is said to be, on another GPU, or not at a multiple of 256.
            TcompileError: CUDA or TensorRT fails.
        """
        with self._turn, self._gpu.used():
            if self._context is None:
                raise UsageError("the engine is closed", where=str(self.path))
            self._set_shapes(inputs)
            for name, buffer in outputs.items():
                gives = tuple(self._context.get_tensor_shape(name))
                if gives != buffer.shape:
                    raise UsageError(
                        f"output '{name}' is {buffer.dtype} {list(buffer.shape)}, the model gives "
                        f"{self._dtypes[name]} {list(gives)}",
                        where=str(self.path),
                    )
            self._execute(inputs, outputs, stream)

    def close(self) -> None:
        """Free what it has on the GPU; it cannot be run any more."""
        with self._turn, self._gpu.used():
            if self._done is not None:
                self._gpu.call("cudaEventSynchronize", self._done)  # of a caller's stream
            self._forget()
            for buffer in self._buffers.values():
                self._gpu.call("cudaFree", buffer)
            if self._done is not None:
                self._gpu.call("cudaEventDestroy", self._done)
            if self._stream is not None:
                self._gpu.call("cudaStreamDestroy", self._stream)
            self._buffers, self._stream, self._done = {}, None, None
            # In this order: each needs the one behind it.
            self._context = self._engine = self._runtime = None

    def _info(self, name: str) -> TensorInfo:
        dims = tuple(self._engine.get_tensor_shape(name))
        shape = tuple("batch" if d < 0 else int(d) for d in dims)
        return TensorInfo(name, str(self._dtypes[name]), shape)

    def _allocate(self) -> None:
        """Make the stream, and buffers of the largest size, whose addresses then stay."""
        self._stream, self._done = self._gpu.stream(), self._gpu.event()
        for tensor in self.inputs:
            if any(isinstance(dim, str) for dim in tensor.shape):
                largest = self._engine.get_tensor_profile_shape(tensor.name, 0)[2]
                self._set_shape(tensor.name, tuple(largest))
        for tensor in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            size = math.prod(shape) * self._dtypes[tensor.name].itemsize
            self._buffers[tensor.name] = int(self._gpu.call("cudaMalloc", max(size, 1)))

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            span = "" if self.batches is None else f", for batches of {self.batches[0]} to "
            span += "" if self.batches is None else f"{self.batches[1]}"
            raise UsageError(
                f"the engine does not take {list(shape)} for input '{name}'{span}",
                where=str(self.path),
            )

    def _set_shapes(self, given: Mapping[str, Buffer]) -> None:
        shapes = {name: buffer.shape for name, buffer in given.items()}
        if shapes == self._shapes:
            return  # what TensorRT does after it was told a shape no graph may hold
        self._forget()
        for name, shape in shapes.items():
            self._set_shape(name, shape)
        self._shapes = shapes

    def _execute(
        self, given: Mapping[str, Buffer], wanted: Mapping[str, Buffer], callers: int
    ) -> None:
        """Run it once its shapes are set, on the caller's stream or on its own."""
        gpu, stream = self._gpu, callers or self._stream
        kinds = (("input", given), ("output", wanted))
        there = {
            n: gpu.address(b, f"{kind} '{n}'") for kind, some in kinds for n, b in some.items()
        }
        addresses = {n: there.get(n) or own for n, own in self._buffers.items()}
        recorded = not (callers and gpu.is_capturing(stream))
        if not callers and any(there.values()):
            # What made the inputs may be under way: our own stream does not wait for it.
            gpu.wait_for_default_stream()
        try:
            if recorded:
                gpu.call("cudaStreamWaitEvent", stream, self._done, 0)
            for name, buffer in given.items():
                if not there[name]:
                    gpu.upload(self._buffers[name], buffer, stream)
            self._launch(addresses, stream, graph=recorded)
            for name, buffer in wanted.items():
                if not there[name]:
                    gpu.download(self._buffers[name], buffer, stream)
            if recorded:
                gpu.call("cudaEventRecord", self._done, stream)
        except BaseException:
            # Copies may be under way: they end before what they read and write is gone.
            if recorded:
                gpu.call("cudaStreamSynchronize", stream)
            raise
        if not callers:
            gpu.call("cudaStreamSynchronize", stream)

    def _launch(self, addresses: dict[str, int], stream: Any, *, graph: bool) -> None:
        """Run it on buffers at these addresses. A graph holds shapes and addresses, and TensorRT
        wants its context left alone as long as one is used: there is one, of what comes twice in
        succession. What the first run of a shape does no graph may hold."""
        again = addresses == self._addresses
        if not again:
            self._forget_graph()
            self._addresses = {}
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise TcompileError(
                        f"TensorRT does not take the buffer of '{name}'", where=str(self.path)
                    )
        if self._graphs and graph and again:
            if self._graph is None:
                self._graph = self._gpu.capture(self._stream, lambda: self._enqueue(self._stream))
            self._gpu.call("cudaGraphLaunch", self._graph, stream)
            return
        self._enqueue(stream)
        self._addresses = addresses

    def _enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(int(stream)):
            self._forget()
            raise TcompileError("TensorRT cannot run the engine", where=str(self.path))

    def _forget_graph(self) -> None:
        # A graph is for the shapes and addresses that it was captured with, and for them alone.
        if self._graph is not None:
            self._gpu.call("cudaGraphExecDestroy", self._graph)
        self._graph = None

    def _forget(self) -> None:
        self._forget_graph()
        self._shapes, self._addresses = {}, {}


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
