"""OpenVINO: runs plain ONNX on the CPU, in fp32 or bf16, and what is quantised in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from tcompile.core.errors import ModelError, TcompileError, UsageError
from tcompile.core.load import read_structure
from tcompile.core.model_files import describe_tensors
from tcompile.core.packages import require
from tcompile.targets.backends.base import Array, fitted
from tcompile.targets.backends.buffers import Buffer, array_at, check_on_cpu

#: Precision → how OpenVINO calls that of what a file has in fp32. Without being told it takes bf16
#: wherever the processor has it.
_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}


def _openvino() -> ModuleType:
    return require("openvino", "openvino", "running a model in OpenVINO")


@lru_cache(maxsize=1)
def _core() -> Any:
    return _openvino().Core()


def version() -> str:
    """The installed OpenVINO's version, without the name of its build."""
    return str(_openvino().__version__).partition("-")[0]


def has_bf16() -> bool:
    """Tell whether the processor computes in bf16; one that does not would emulate it."""
    found: list[str] = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in found


def check_precision(precision: str) -> None:
    """Raise UsageError for bf16 on a processor that has none."""
    if precision == "bf16" and not has_bf16():
        raise UsageError(
            "this processor has no bf16",
            where="--precision bf16",
            hint="it takes AMX or AVX512-BF16; say fp32 or int8",
        )


class OpenVinoRunner:
    """One model compiled by OpenVINO for the CPU. Runs one thing at a time: of several threads that
    call `run`, each waits for the one before it.

    Args:
        path: the .onnx file; external data lies beside it.
        threads: None leaves it to OpenVINO.
        precision: of what the file has in fp32: bf16, or fp32 (of an int8 file too).

    Raises:
        MissingExtraError: openvino is not installed.
        ModelError: OpenVINO does not accept the file.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, *, precision: str = "fp32"
    ) -> None:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = _core()
        try:
            compiled = core.compile_model(str(path), "CPU", settings)
        except Exception as error:  # whatever it raises, mostly RuntimeError
            raise ModelError(
                f"OpenVINO does not accept the model: {_reason(error)}", where=str(path)
            ) from error
        model = read_structure(path)
        self.path = Path(path)
        self.inputs, self.outputs = describe_tensors(model)
        self.metadata: Mapping[str, str] = {p.key: p.value for p in model.metadata_props}
        self._tensor = _openvino().Tensor
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._lent: tuple[frozenset[str], Any] | None = None
        self._turn = Lock()
        # One tensor may have several names, and an input that nothing reads none at all.
        self._inputs = {name: port for port in compiled.inputs for name in port.names}
        self._outputs = {name: port for port in compiled.outputs for name in port.names}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; as `OrtRunner.run`.

        Raises:
            UsageError: an input is missing, unknown, or has the wrong shape.
        """
        with self._turn:
            self._set(feed)
            self._request.infer()
            return {
                info.name: np.array(self._request.get_tensor(self._outputs[info.name]).data)
                for info in self.outputs
            }

    def run_buffers(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], stream: int
    ) -> None:
        """Run it in memory of the caller's; see `InPlace`.

        Raises:
            UsageError: a buffer of a GPU, or a stream.
            TcompileError: OpenVINO fails.
        """
        check_on_cpu("OpenVINO", inputs, outputs, stream)
        with self._turn:
            # A request keeps what it was given. So this is not that of `run`, and an output that is
            # not wanted any more takes a new one.
            names = frozenset(outputs)
            if self._lent is None or self._lent[0] != names:
                self._lent = (names, self._compiled.create_infer_request())
            request = self._lent[1]
            try:
                for buffers, ports in ((inputs, self._inputs), (outputs, self._outputs)):
                    for name, buffer in buffers.items():
                        if name in ports:
                            view = self._tensor(array_at(buffer), shared_memory=True)
                            request.set_tensor(ports[name], view)
                request.infer()
            except Exception as error:  # whatever it raises, mostly RuntimeError
                self._lent = None
                raise TcompileError(
                    f"OpenVINO cannot run the model: {_reason(error)}", where=str(self.path)
                ) from error

    def prepared(self, feed: Mapping[str, Array]) -> Callable[[], object]:
        """Return what runs the model on these inputs and leaves its outputs where they are.

        Raises:
            UsageError: as `run`.
        """
        kept = self._set(feed)
        request = self._request

        def run(held: object = kept) -> None:  # It reads their memory.
            request.infer()

        return run

    def _set(self, feed: Mapping[str, Array]) -> dict[str, Any]:
        arrays = fitted(feed, self.inputs, self.path)
        tensors = {
            # What cannot be written to cannot be shared: a view that stands for many rows, say.
            name: self._tensor(array, shared_memory=array.flags.writeable)
            for name, array in arrays.items()
            if name in self._inputs
        }
        for name, tensor in tensors.items():
            self._request.set_tensor(self._inputs[name], tensor)
        return {**arrays, **tensors}


def _reason(error: Exception) -> str:
    """What is wrong, of a message that names places in OpenVINO's source line by line."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told or [type(error).__name__])[-1][:300]
