"""The calls of each exporter. All give an in-memory `onnx.ModelProto`."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from tcompile.core.drafts import scratch
from tcompile.core.errors import MissingExtraError
from tcompile.models.source import LoadedModel

log = logging.getLogger(__name__)

# With one image, torch.export takes the batch for a constant 1.
_TRACE_BATCH = 2
# torch's operator library starts here; `tcompile.models.opset` turns 18 into 17.
DYNAMO_OLDEST_OPSET = 18


@dataclass(frozen=True)
class Job:
    """The model and settings that a recipe exports.

    Attributes:
        loaded: the model.
        inputs: example inputs by name, at the batch to trace with.
        dynamic: whether the first axis of every input is free.
        opset: to write.
    """

    loaded: LoadedModel
    inputs: dict[str, torch.Tensor]
    dynamic: bool
    opset: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Dims of the inputs; the first is the traced batch."""
        return {name: tuple(tensor.shape) for name, tensor in self.inputs.items()}


def job(loaded: LoadedModel, batch: int | str, opset: int) -> Job:
    """Repeat the example inputs to the batch that is asked for."""
    count = batch if isinstance(batch, int) else _TRACE_BATCH
    inputs = {name: batched(tensor, count) for name, tensor in loaded.example_inputs.items()}
    prepare = getattr(loaded.module, "prepare", None)
    if callable(prepare):  # constants that cannot be made while an exporter traces
        prepare(*inputs.values())
    return Job(loaded, inputs, batch == "dynamic", opset)


def batched(example: torch.Tensor, count: int) -> torch.Tensor:
    """`count` different inputs like `example` ([1, ...], or the patches of one image); the first
    is the example itself."""
    if count == 1:
        return example
    if not example.is_floating_point():
        return example.repeat(count, *[1] * (example.dim() - 1))
    generator = torch.Generator().manual_seed(count)
    more = (count - 1) * example.shape[0]
    rest = torch.randn(more, *example.shape[1:], generator=generator).to(example.dtype)
    return torch.cat([example, rest])


def dynamo(job: Job) -> onnx.ModelProto:
    """torch.onnx with torch.export (`dynamo=True`)."""
    free = {0: torch.export.Dim("batch", min=1, max=65536)} if job.dynamic else None
    program = torch.onnx.export(
        job.loaded.module,
        tuple(job.inputs.values()),
        dynamo=True,
        input_names=list(job.inputs),
        output_names=list(job.loaded.output_names),
        opset_version=max(job.opset, DYNAMO_OLDEST_OPSET),
        dynamic_shapes=_dynamic_shapes(job, free),
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    proto: onnx.ModelProto = program.model_proto
    return proto


def torchscript(job: Job) -> onnx.ModelProto:
    """torch.onnx with a TorchScript trace (`dynamo=False`)."""
    # A folder, not a buffer: above 2 GB the weights come as files beside the graph.
    with scratch() as folder:
        path = folder / "model.onnx"
        torch.onnx.export(
            job.loaded.module,
            tuple(job.inputs.values()),
            str(path),
            dynamo=False,
            input_names=list(job.inputs),
            output_names=list(job.loaded.output_names),
            opset_version=job.opset,
            dynamic_axes={n: {0: "batch"} for n in job.inputs} if job.dynamic else None,
            verbose=False,
        )
        return onnx.load(path)


def transformers(job: Job) -> onnx.ModelProto:
    """transformers' OnnxExporter, which patches the models and torch while it traces."""
    try:
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers>=5", "export", "transformers' exporter") from error
    import onnx_ir

    # An explicit shape for the batch alone: dynamic=True frees height and width as well.
    free = {0: torch.export.Dim("batch", min=1, max=65536)}
    config = OnnxConfig(
        opset_version=max(job.opset, DYNAMO_OLDEST_OPSET),
        # Every argument must be named: those of each call, being no tensors, as None.
        dynamic_shapes={**dict.fromkeys(job.inputs, free), **dict.fromkeys(job.loaded.call)}
        if job.dynamic
        else None,
    )
    inputs = {**job.inputs, **job.loaded.call}
    exported = OnnxExporter().export(job.loaded.base, inputs, config=config)
    proto: onnx.ModelProto = onnx_ir.serde.serialize_model(exported.program)
    return proto


RECIPES: dict[str, Callable[[Job], onnx.ModelProto]] = {
    "dynamo": dynamo,
    "torchscript": torchscript,
    "transformers": transformers,
}


def output_dims(job: Job) -> list[tuple[int | str, ...]]:
    """Dims of each output in PyTorch, the free batch as "batch"."""
    name, first = next(iter(job.inputs.items()))
    traced = first.shape[0] // job.loaded.example_inputs[name].shape[0]
    counts = (traced, traced + 1) if job.dynamic else (traced,)
    found: list[list[torch.Size]] = []
    for count in counts:
        examples = job.loaded.example_inputs.values()
        result = job.loaded.module(*(batched(tensor, count) for tensor in examples))
        tensors = (result,) if isinstance(result, torch.Tensor) else result
        found.append([tensor.shape for tensor in tensors])
    return [
        tuple(sizes[0] if len(set(sizes)) == 1 else "batch" for sizes in zip(*shapes, strict=True))
        for shapes in zip(*found, strict=True)
    ]


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Return what every exporter needs of torch while it traces."""
    # nn.MultiheadAttention's inference kernel is one op that TorchScript cannot write.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what exporters print and warn to our log: stdout belongs to the caller.

    The C++ half of torch.onnx prints whole graphs when it fails, past Python's sys.stdout; so the
    file descriptors themselves are turned away for the time of the export.
    """
    levels = {name: logging.getLogger(name).level for name in _CHATTER}
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with tempfile.TemporaryFile() as said:
        try:
            for descriptor in (1, 2):
                os.dup2(said.fileno(), descriptor)
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                for name in _CHATTER:
                    logging.getLogger(name).setLevel(logging.ERROR)
                yield
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            said.seek(0)
            log.debug("exporter said: %s", said.read().decode(errors="replace"))


_CHATTER = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "transformers")


def _dynamic_shapes(job: Job, free: Any) -> Any:
    """`forward(*inputs)` (our wrapper) is one argument to torch.export, a tuple of tensors."""
    if free is None:
        return None
    parameters = inspect.signature(job.loaded.module.forward).parameters.values()
    packed = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    each = tuple(free for _ in job.inputs)
    return (each,) if packed else each
