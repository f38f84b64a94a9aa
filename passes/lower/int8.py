"""int8 for ONNX Runtime on a CPU: its own quantizer, told what to leave alone.

Products of an activation and a stored weight become int8, weights once and per output channel,
activations per tensor as unsigned bytes. There are two kinds, and which is better depends on the
model and the machine:

dynamic  the range of an activation is looked up in every run: nothing is calibrated, and images
         unlike any other lose nothing more. Costs a pass over each activation.
static   ranges are taken from samples once (QDQ). No pass, but what lies beyond the samples' range
         is cut off, and one outlier makes the steps of all other values coarse.

All else stays fp32: products of two activations (the attention itself), norms, softmax, the first
convolution, and whatever tcompile wrote: scores, sizes, token ops, restoring. Those choose tokens,
and there one rounding flips a token for good.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.domain import WRITTEN
from tcompile.core.drafts import scratch
from tcompile.core.errors import ModelError
from tcompile.core.machine import int8_saturates
from tcompile.core.packages import require
from tcompile.core.save import save

Kind = Literal["dynamic", "static"]
Feed = Mapping[str, npt.NDArray[Any]]

#: Become int8 where their second operand is a stored matrix. A convolution is left alone: that of
#: an image into patches is a small share of a transformer, and its int8 kernel is slow.
OPERATORS = ("MatMul", "Gemm")
#: `extra_options` of each kind. A static product gives fp32: what reads it is mostly a norm, a
#: softmax or a sum, and the kernel takes the scales in the same pass.
EXTRA: Mapping[Kind, Mapping[str, Any]] = {
    "dynamic": {"MatMulConstBOnly": True},
    "static": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(OPERATORS)},
}
#: Bytes of weights from which on a model does not fit into one protobuf message.
LIMIT = 2 << 30
#: Says to the quantizer that a model was prepared for it, which a normal form is.
_PREPARED = "onnx.quant.pre_process"


def quantizable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the nodes that int8 is for, in the graph's order."""
    weights = {t.name: t for t in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in OPERATORS
        and not node.domain
        and node.name
        and not node.name.startswith(WRITTEN)
        and _is_product(node)
        and node.input[0] not in weights
        and _is_matrix(weights.get(node.input[1]))
    )


def _is_product(node: onnx.NodeProto) -> bool:
    """Tell whether it is A·B or A·B + C: dynamic int8 has nothing for any other Gemm."""
    numbers = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    scales = numbers.get("alpha", 1), numbers.get("beta", 1)
    return scales == (1, 1) and not numbers.get("transA", 0)


def _is_matrix(weight: onnx.TensorProto | None) -> bool:
    return (
        weight is not None and len(weight.dims) == 2 and weight.data_type == onnx.TensorProto.FLOAT
    )


def quantized(model: onnx.ModelProto, kind: Kind, samples: Sequence[Feed] = ()) -> onnx.ModelProto:
    """The model with its products of activations and weights in int8; one that has none, a copy.

    Inputs, outputs and metadata stay.

    Args:
        model: fp32, without model-local functions, all weights inside; it is left as it is. Nodes
            that are to be quantised have names.
        samples: static: arrays for all inputs, one mapping a run, to take ranges from.

    Raises:
        ModelError: its weights take 2 GB or more; ONNX Runtime's quantizer does not take it.
        MissingExtraError: onnxruntime is not installed.
    """
    made = by_quantizer(model, kind, samples)
    if kind == "static":
        _biases_as_rows(made.graph, quantizable(model))
    return made


def by_quantizer(
    model: onnx.ModelProto, kind: Kind, samples: Sequence[Feed] = ()
) -> onnx.ModelProto:
    """What one call of ONNX Runtime's quantizer makes; arguments and errors as `quantized`."""
    check_size(sum(t.ByteSize() for t in model.graph.initializer))
    names = quantizable(model)
    if not names:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    prepared = onnx.ModelProto()
    prepared.metadata_props.add(key=_PREPARED, value="tcompile")
    called = [*names, *(f"{name}_MatMul" for name in names)]  # what becomes of a Gemm
    tool = require("onnxruntime.quantization", "cpu", "int8")
    options = {
        "per_channel": True,
        # Of seven bits, where two products of eight would not fit into the sum's sixteen.
        "reduce_range": int8_saturates(),
        "op_types_to_quantize": list(OPERATORS),
        "nodes_to_quantize": called,
        "weight_type": tool.QuantType.QInt8,
        "extra_options": dict(EXTRA[kind]),
    }
    with scratch() as folder, _unlogged():
        source, path = folder / "source.onnx", folder / "model.onnx"
        with source.open("wb") as stream:
            # Of a file the quantizer makes fewer copies; parts of a protobuf message add up.
            stream.write(model.SerializeToString())
            stream.write(prepared.SerializeToString())
        try:
            if kind == "dynamic":
                tool.quantize_dynamic(source, path, **options)
            else:
                options |= {"activation_type": tool.QuantType.QUInt8}
                tool.quantize_static(source, path, _Reader(samples), **options)
        except Exception as error:  # whatever it raises: of ONNX, of ONNX Runtime, of its own
            raise ModelError(
                f"ONNX Runtime's quantizer does not take it ({kind}): "
                f"{' '.join(str(error).split())[:300]}",
                hint="build with --precision fp32",
            ) from error
        made = onnx.load(path)
    return _tidied(made, model)


def save_quantized(
    graph: gs.Graph, path: Path, kind: Kind = "dynamic", samples: Sequence[Feed] = ()
) -> None:
    """Write a graph in int8; arguments and errors as `quantized`.

    Args:
        graph: fp32, in plain ONNX.
    """
    with scratch() as folder:
        save(graph, folder / "model.onnx")
        made = quantized(onnx.load(folder / "model.onnx"), kind, samples)
    onnx.save(made, path)


def check_quantized(model: onnx.ModelProto) -> None:
    """Raise ModelError where quantising left a model as it was."""
    if not any(node.op_type.endswith("QuantizeLinear") for node in model.graph.node):
        raise nothing_to_quantize()


def nothing_to_quantize(where: str = "") -> ModelError:
    """The error for a model without products that may be int8."""
    return ModelError(
        "it has no product of an activation and a stored matrix: nothing can be int8",
        where=where,
        hint="build with --precision fp32",
    )


def check_size(weights: int, where: str = "") -> None:
    """Raise ModelError where a model with so many bytes of weights is too large for int8."""
    if weights >= LIMIT:
        raise ModelError(
            f"int8 takes models below 2 GB, and its weights are {weights / (1 << 30):.1f} GB: ONNX "
            "Runtime's quantizer holds a model as one message",
            where=where,
            hint="build with --precision fp32",
        )


def _biases_as_rows(graph: onnx.GraphProto, products: Sequence[str]) -> None:
    """Give the biases behind static products a second dimension, which changes no result.

    ONNX Runtime fuses a product with a bias of one dimension into a Gemm before it looks for int8,
    and computes that in fp32 with weights made anew in every run: five times as long as a product
    of bytes and a sum (1.32; where shapes are known, as in what torch.export writes).
    """
    stored = {t.name: t for t in graph.initializer}
    behind = {n.output[0] for n in graph.node if n.op_type == "MatMul" and n.name in set(products)}
    rows: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add" or not behind.intersection(node.input):
            continue
        for i, name in enumerate(node.input):
            if name in stored and len(stored[name].dims) == 1:
                rows.setdefault(name, f"{name}/row")
                node.input[i] = rows[name]
    for name, row in rows.items():
        bias = onnx.numpy_helper.to_array(stored[name])
        graph.initializer.append(onnx.numpy_helper.from_array(bias[None], row))
    read = {name for node in graph.node for name in node.input}
    read |= {output.name for output in graph.output}
    for name in rows.keys() - read:
        graph.initializer.remove(stored[name])


def _tidied(made: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The quantizer's result with the model's own metadata, and only domains that are in use."""
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    used = {node.domain for node in made.graph.node}
    imports = [o for o in made.opset_import if o.domain in used | {"", "ai.onnx"}]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    return made


class _Reader:
    """Gives the samples one after another, as onnxruntime's `CalibrationDataReader` does."""

    def __init__(self, samples: Sequence[Feed]) -> None:
        self._left = [{n: np.asarray(a) for n, a in feed.items()} for feed in samples]

    def __len__(self) -> int:
        return len(self._left)

    def get_next(self) -> Feed | None:
        """The next sample; None after the last."""
        return self._left.pop(0) if self._left else None


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep from the root logger what the quantizer says of each node, and from being set up."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.manager.disable
    root.addHandler(handler)
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)
        root.removeHandler(handler)
