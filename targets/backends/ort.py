"""ONNX Runtime: runs models on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from tcompile.core.drafts import scratch
from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.load import read_structure
from tcompile.core.machine import usable_cores
from tcompile.core.model_files import TensorInfo
from tcompile.core.packages import require
from tcompile.core.rounding import spell_rounding
from tcompile.core.save import save
from tcompile.targets.backends.base import Array, fitted
from tcompile.targets.backends.buffers import Buffer, check_on_cpu, numpy_dtype

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_CPU = "CPUExecutionProvider"


def version() -> str:
    """The installed ONNX Runtime's version."""
    return str(require("onnxruntime", "cpu", "running a model").__version__)


class OrtRunner:
    """One model in one ONNX Runtime session, on the CPU unless told. Several threads may run it at
    a time.

    On a CPU there is hardly a kernel for bf16: such a model is run in fp32, every result rounded.

    Args:
        path: the .onnx file; external data lies beside it.
        threads: threads inside an operator; None: one for each core that this process may use.
        optimize: False runs the graph exactly as it is written.
        in_turn: several are open and run one after another: threads stop spinning when a run ends,
            which would take the processor from the next one's.
        lean: many are open at a time: none keeps memory of its runs, or a second copy of weights in
            the order in which products read them. For fp32 models.
        providers: execution providers, best first, as ONNX Runtime names them; what none of them
            takes runs on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UsageError: this ONNX Runtime does not have a provider, or cannot start it.
        ModelError: ONNX Runtime does not accept the file.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        *,
        optimize: bool = True,
        in_turn: bool = False,
        lean: bool = False,
        providers: Sequence[str] = (_CPU,),
    ) -> None:
        ort = require("onnxruntime", "cpu", "running a model")
        options = ort.SessionOptions()
        plain = _add_plugin_providers(ort, options, providers)
        options.log_severity_level = 3  # warnings about unused initialisers help no one
        if threads is None and usable_cores() < (os.cpu_count() or 1):
            threads = usable_cores()  # which ONNX Runtime does not look at
        if threads is not None:
            options.intra_op_num_threads = threads
        if in_turn:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if lean:
            options.enable_cpu_mem_arena = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        elif _stored(path, onnx.TensorProto.FLOAT8E4M3FN):
            # 1.32 removes a Relu in front of Q, as if like a byte E4M3 held nothing below zero.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        elif not lean and tuple(providers) == (_CPU,) and is_half(path):
            # In fp16 the CPU's fusions are not sound: 1.32 crashes on a LayerNormalization that is
            # transposed into a MatMul, and others leave nodes without a kernel (issue 32186). Its
            # memory planning spoils the second run of a LayerNormalization (issue 27768).
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.enable_mem_pattern = False
        try:
            spelled = _runnable(path) if tuple(providers) == (_CPU,) else nullcontext(path)
            with spelled as file:
                # Providers of plugins are in the options; both may not be given.
                self._session = ort.InferenceSession(str(file), options, providers=plain)
        except Exception as error:  # its exceptions share no base class but Exception
            raise ModelError(
                f"ONNX Runtime does not accept the model: {_first_line(error)}", where=str(path)
            ) from error
        running = self._session.get_providers()
        for name in providers:
            if name not in running:  # it only warns, and runs everything on the CPU
                raise UsageError(
                    f"ONNX Runtime cannot start {name}",
                    where=str(path),
                    hint="are its driver and libraries there? ONNX Runtime printed why",
                )
        self.path = Path(path)
        self.inputs = tuple(_info(value) for value in self._session.get_inputs())
        self.outputs = tuple(_info(value) for value in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: an array for each input, by name; floats are cast to the input's precision.

        Returns:
            An array for each output, by name.

        Raises:
            UsageError: an input is missing, unknown, or has the wrong shape.
        """
        arrays = fitted(feed, self.inputs, self.path)
        values = self._session.run([info.name for info in self.outputs], arrays)
        return {info.name: np.asarray(v) for info, v in zip(self.outputs, values, strict=True)}

    def run_buffers(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: int
    ) -> None:
        """Run it in memory of the caller's; see `InPlace`.

        Raises:
            UsageError: a buffer of a GPU, or a stream.
            TcompileError: ONNX Runtime fails.
        """
        check_on_cpu("ONNX Runtime", inputs, outputs, stream)
        binding = self._session.io_binding()
        for buffers, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, b in buffers.items():
                bind(name, "cpu", 0, numpy_dtype(b.dtype).type, b.shape, b.address)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its exceptions share no base class but Exception
            raise TcompileError(
                f"ONNX Runtime cannot run the model: {_first_line(error)}", where=str(self.path)
            ) from error

    def prepared(self, feed: Mapping[str, Array]) -> Callable[[], object]:
        """Return what runs the model on these inputs and leaves its outputs where they are.

        Inputs are looked at once, not at every run: of a part that is run for its latency alone,
        Python would otherwise be a good share.

        Raises:
            UsageError: as `run`.
        """
        binding, arrays = self._session.io_binding(), fitted(feed, self.inputs, self.path)
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        for info in self.outputs:
            binding.bind_output(info.name)
        session = self._session

        def run(kept: object = arrays) -> None:  # The binding reads their memory.
            session.run_with_iobinding(binding)

        return run


def _add_plugin_providers(ort: Any, options: Any, providers: Sequence[str]) -> list[str] | None:
    """Put providers of registered plugin libraries into the options; returns the names to give to
    the session, or None where the options have them all."""
    own = ort.get_available_providers()
    devices: list[Any] = list(getattr(ort, "get_ep_devices", list)())
    plugins = {name: [d for d in devices if d.ep_name == name] for name in providers}
    for name in providers:
        if name not in own and not plugins[name]:
            there = dict.fromkeys([*own, *(d.ep_name for d in devices)])
            raise UsageError(
                f"ONNX Runtime {ort.__version__} has no {name}",
                where="providers",
                hint=f"it has {', '.join(there)}; another package or plugin brings others",
            )
    if all(name in own for name in providers):
        return [*dict.fromkeys([*providers, _CPU])]
    for name in providers:
        if plugins[name]:
            options.add_provider_for_devices(plugins[name], {})
        else:
            options.add_provider(name, {})
    return None


def is_half(path: str | Path) -> bool:
    """Return whether a file stores fp16 weights; what is not a model is left to ONNX Runtime."""
    return bool(_stored(path, onnx.TensorProto.FLOAT16))


def _stored(path: str | Path, kind: int) -> set[str]:
    """The names of a file's weights of an element type, those aside that are only cast from it."""
    try:
        graph = read_structure(path).graph
    except TcompileError:
        return set()
    read = {name for node in graph.node if node.op_type != "Cast" for name in node.input}
    return read & {tensor.name for tensor in graph.initializer if tensor.data_type == kind}


@contextmanager
def _runnable(path: str | Path) -> Iterator[str | Path]:
    """The file, or one with rounding to bf16 spelled out in its place."""
    if not _stored(path, onnx.TensorProto.BFLOAT16):
        yield path
        return
    model = onnx.load(str(path))
    with G_LOGGER.suppress(G_LOGGER.ERROR):  # numpy has no bf16 of its own, it warns
        graph = gs.import_onnx(model)
    spell_rounding(graph)
    with scratch() as folder:
        spelled = folder / "model.onnx"
        save(graph, spelled, {entry.key: entry.value for entry in model.metadata_props})
        yield spelled


def _info(value: Any) -> TensorInfo:
    # ONNX Runtime gives None for a dim without a name.
    shape = tuple(d if isinstance(d, int) else str(d or "?") for d in value.shape)
    return TensorInfo(value.name, _DTYPES.get(value.type, str(value.type)), shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
