"""The parts that `tensorrt` and `tensorrt_rtx` share: an ONNX file in, a serialised engine out.

Both packages have the same API for this. Networks are strongly typed on both: every
precision is in the graph.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.interrupt import checkpoint
from tcompile.core.load import read_structure
from tcompile.core.progress import Progress, silent
from tcompile.targets.backends.base import Batch, EngineError, ParseError, first_dims
from tcompile.targets.backends.build_watch import BuildWatch, load_timings, save_timings

logger = logging.getLogger("tcompile.tensorrt")


def build_plan(
    trt: ModuleType,
    model_path: Path,
    *,
    batch: Batch | None = None,
    workspace: int | None = None,
    timings: Path | None = None,
    progress: Progress = silent,
    configure: Callable[[Any, Any], None] = lambda config, parser: None,
    flags: int = 0,
) -> memoryview:
    """Compile an ONNX file with one of the two packages.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        model_path: the .onnx file; external data lies beside it.
        batch: sizes for a symbolic batch; None takes the defaults of `Batch`.
        workspace: MiB that kernels may use while they run; None: all there is.
        timings: a file that keeps what kernels took, for the next build.
        progress: is told how far it is.
        configure: sets what differs between the two on the builder configuration, and may ask the
            parser what it took.
        flags: creation flags of the network beside strong typing.

    Returns:
        The serialised engine.

    Raises:
        ParseError: the parser does not accept the model; names the node.
        EngineError: the parser accepts it, and no engine can be built.
        KeyboardInterrupt: Ctrl-C ended the build.
    """
    log = _log_of(trt)
    builder, network, parser = parse(trt, model_path, flags)
    checkpoint()
    config = builder.create_builder_config()
    # Node names in the plan are what tells which attention was fused.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    if timings is not None:
        load_timings(config, timings)
    log.interrupted = False
    watch = BuildWatch(trt, progress, lambda: log.interrupted)
    config.progress_monitor = watch.native
    configure(config, parser)
    profile = _profile(builder, network, batch or Batch(), model_path)
    if profile is not None:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    checkpoint()
    if watch.stopped or log.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(title(trt), _last(log), where=str(model_path))
    if timings is not None:
        save_timings(config, timings)
    # A view: an engine holds all weights, and the caller only writes it to a file.
    return memoryview(plan)


def deserialise(
    trt: ModuleType,
    path: Path,
    plan: bytes,
    *,
    host_code: bool = False,
    lean_runtime: Path | None = None,
) -> tuple[Any, Any]:
    """Open an engine; returns what it needs, the runtime first of all, and the engine.

    Args:
        path: its file, for messages.
        plan: what was read of that.
        host_code: whether it may run code out of the file, of which the caller knows the SHA-256.
        lean_runtime: the library of the TensorRT that built the engine, which then runs it.

    Raises:
        ModelError: the package does not accept the file; says why in its words.
        UsageError: it does not load the lean runtime.
    """
    log = _log_of(trt)
    log.recent_errors.clear()
    runtime = trt.Runtime(log.native)
    if host_code:
        runtime.engine_host_code_allowed = True
    needed = runtime
    if lean_runtime is not None:
        runtime = runtime.load_runtime(str(lean_runtime))
        if runtime is None:
            raise UsageError(
                f"{title(trt)} does not load the lean runtime: {_last(log)}",
                where=str(lean_runtime),
                hint="it is libnvinfer_lean.so of the TensorRT that built the engine",
            )
        needed = (needed, runtime)  # freed from the back
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(
            f"{title(trt)} does not load the engine: {_last(log)}",
            where=str(path),
            hint="build it again with this version, on this machine or for its GPU",
        )
    return needed, engine


def layer_information(trt: ModuleType, plan: memoryview) -> str | None:
    """What the engine inspector says of all layers, as JSON; None where the engine cannot be opened
    on this machine."""
    runtime = trt.Runtime(_log_of(trt).native)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse(trt: ModuleType, model_path: Path, flags: int = 0) -> tuple[Any, Any, Any]:
    """Parse an ONNX file; returns builder, network and parser, which need one another.

    Raises:
        ParseError: the parser does not accept the model; names the node.
    """
    log = _log_of(trt)
    log.recent_errors.clear()
    builder = trt.Builder(log.native)
    if builder is None:
        raise TcompileError(f"{trt.__name__} cannot create a builder", hint=_last(log))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed | flags)
    parser = trt.OnnxParser(network, log.native)
    if not parser.parse_from_file(str(model_path)):
        raise _parse_failure(trt, parser, model_path)
    return builder, network, parser


@contextmanager
def beside(model_path: Path, data: bytes) -> Iterator[Path]:
    """Another form of a model as a file beside it, whose weights it may name relative to itself.

    It is closed before it is used: Windows opens no file twice that is to be deleted.
    """
    handle, name = tempfile.mkstemp(dir=model_path.parent, suffix=".onnx")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        yield Path(name)
    finally:
        Path(name).unlink()


def title(trt: ModuleType) -> str:
    """The package as its makers call it, and its version."""
    name = "TensorRT-RTX" if trt.__name__ == "tensorrt_rtx" else "TensorRT"
    return f"{name} {trt.__version__}"


def _profile(builder: Any, network: Any, batch: Batch, model_path: Path) -> Any | None:
    """An optimisation profile for inputs with a symbolic batch, or None when there are none."""
    free, names = False, _first_names(model_path)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            raise ModelError(
                f"input '{tensor.name}' has a free axis other than the batch: {list(shape)}",
                where=str(model_path),
                hint="give it a fixed size when exporting",
            )
        sizes = first_dims(names.get(tensor.name, "batch"), batch)
        profile.set_shape(tensor.name, *[(size, *shape[1:]) for size in sizes])
        free = True
    return profile if free else None


def _first_names(model_path: Path) -> dict[str, str]:
    """Return what the first dims of the inputs are called, where they are symbolic."""
    graph = read_structure(model_path).graph
    dims = {v.name: v.type.tensor_type.shape.dim for v in graph.input}
    return {
        name: found[0].dim_param for name, found in dims.items() if found and found[0].dim_param
    }


def _parse_failure(trt: ModuleType, parser: Any, model_path: Path) -> ParseError:
    if not parser.num_errors:
        return ParseError(title(trt), "it gave no reason", where=str(model_path))
    error = parser.get_error(0)
    node, op, inside = error.node_name(), error.node_operator(), _functions(error)
    if not node and not op and not inside:
        # Some importers leave out which node it is, and the function that complains says its kind.
        op = str(error.func()).removeprefix("import")
        nodes = read_structure(model_path).graph.node
        of_kind = [n for n in nodes if n.op_type == op]
        if "reduction" in error.desc():
            of_kind = [n for n in of_kind if any(a.name == "reduction" for a in n.attribute)]
        node = of_kind[0].name if of_kind else ""
        op = op if node else ""
    return ParseError(
        title(trt), error.desc(), node=node, op=op, inside=inside, where=str(model_path)
    )


def _functions(error: Any) -> tuple[str, ...]:
    # Not every version of TensorRT-RTX has it.
    stack = getattr(error, "local_function_stack", None)
    return tuple(str(name) for name in stack() or ()) if stack is not None else ()


class _Log:
    """Passes TensorRT's messages to `logging`, and remembers errors for our own messages."""

    def __init__(self, trt: ModuleType) -> None:
        self.recent_errors: list[str] = []
        self.interrupted = False
        outer = self
        levels = {
            trt.ILogger.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.ERROR: logging.ERROR,
            # Its warnings are about its own naming and types, its information is progress.
            trt.ILogger.WARNING: logging.INFO,
            trt.ILogger.INFO: logging.DEBUG,
            trt.ILogger.VERBOSE: logging.DEBUG - 5,
        }
        remember = self.recent_errors

        class Bridge(trt.ILogger):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                # TensorRT would print an exception from here and go on; Ctrl-C is noted, and
                # `build_plan` asks.
                try:
                    level = levels.get(severity, logging.DEBUG)
                    if level >= logging.ERROR:
                        remember.append(" ".join(message.split()))
                        level = logging.DEBUG  # the exception we raise carries it
                    logger.log(level, "%s", message)
                except KeyboardInterrupt:
                    outer.interrupted = True

        self.native = Bridge()


@lru_cache(maxsize=2)
def _log_of(trt: ModuleType) -> _Log:
    # TensorRT keeps the first logger it is given for the whole process and ignores later ones.
    return _Log(trt)


def _last(log: _Log) -> str:
    return log.recent_errors[-1] if log.recent_errors else "it gave no reason"
