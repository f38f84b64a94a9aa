"""Which attention layers of a model an engine runs as one fused kernel.

A TensorRT plan embeds Myelin's list of kernels as text, one `function={ name=... layers="..." }`
each, where `layers` names the ONNX nodes that went into the kernel. Fused attention has `_mha` in
the kernel's name (`_gemm_mha_v2`). Seen with TensorRT-RTX 1.7.1 on plans for SM75 to SM120.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from tcompile.targets.backends.base import FusedAttention

Plan = bytes | memoryview

_KERNEL = re.compile(rb'function=\{ name=([A-Za-z0-9_]+) [^\n]*?layers="([^"]*)"')
_NAME = re.compile(rb"function=\{ name=([A-Za-z0-9_]+)")
# A node inside a model-local function reads `inner | call (Function)`, and is none of ours.
_LAYER = re.compile(r"\[ONNX Layer: ([^\]|]*)\]")

#: Operators that are a whole attention by themselves.
_ATTENTION_OPS = {"Attention", "MultiHeadAttention"}
#: Names of what scores and reducers write begin with this: a score may compute all rows of an
#: attention once more, beside the one that is to be fused.
_OURS = "tcompile/"
#: What may lie between Q·Kᵀ and the softmax: scale, mask, casts.
_BEFORE = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape"}
#: What may lie between the softmax and the product with V.
_AFTER = {"Where", "Cast", "Identity", "Dropout", "Reshape"}


@dataclass(frozen=True)
class Kernel:
    """A kernel in a plan, and the names of the ONNX nodes that it computes."""

    name: str
    layers: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """Whether it is a fused attention kernel."""
        return "_mha" in self.name


@dataclass(frozen=True)
class AttentionLayer:
    """An attention in a graph.

    Attributes:
        name: its Softmax node, or its Attention node.
        queries: how many query rows it has; None where the shape is not known.
    """

    name: str
    queries: int | None


def kernels(plan: Plan) -> list[Kernel]:
    """The kernels that a plan lists, in its order."""
    found = []
    for match in _KERNEL.finditer(plan):
        layers = _LAYER.findall(bytes(match[2]).decode("utf-8", "replace"))
        found.append(Kernel(bytes(match[1]).decode(), tuple(layers)))
    return found


def attention_layers(model: onnx.ModelProto) -> list[AttentionLayer]:
    """The attentions of a model, in its order: Attention operators, and every Softmax between a
    product of two activations and a product with a third.

    Weights are not looked at. Query rows come from the shapes stored in the file.
    """
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    shapes = _shapes(model)

    def is_product(node: onnx.NodeProto | None) -> bool:
        return (
            node is not None
            and node.op_type in {"MatMul", "Einsum"}
            and not constants.intersection(node.input)
        )

    def from_product(name: str, depth: int = 8) -> bool:
        node = producer.get(name)
        if is_product(node):
            return True
        if node is None or node.op_type not in _BEFORE or depth == 0:
            return False
        return any(from_product(each, depth - 1) for each in node.input)

    def to_product(name: str, depth: int = 6) -> bool:
        for node in consumers.get(name, []):
            if is_product(node):
                return True
            if node.op_type in _AFTER and depth and to_product(node.output[0], depth - 1):
                return True
        return False

    layers = []
    for node in graph.node:
        if node.name.startswith(_OURS):
            continue
        if node.op_type == "Softmax":
            if not (from_product(node.input[0]) and to_product(node.output[0])):
                continue
            rows = _rows(shapes.get(node.output[0]))
        elif node.op_type in _ATTENTION_OPS:
            rows = _rows(shapes.get(node.input[0]))
        else:
            continue
        # TensorRT's parser calls a nameless node after its first output.
        layers.append(AttentionLayer(node.name or f"node_of_{node.output[0]}", rows))
    return layers


def expected_fused(model: onnx.ModelProto) -> list[AttentionLayer]:
    """The attentions that a half precision engine should fuse: those with more than one query row.

    One query row (attention pooling) is a matrix-vector product that costs 1/N of an attention.
    TensorRT fuses it for some sizes and not for others, and either is well.
    """
    return [layer for layer in attention_layers(model) if layer.queries != 1]


def fused_attention(plan: Plan, model: onnx.ModelProto) -> FusedAttention:
    """Compare the attentions of a model with the fused kernels in the plan built from it.

    The result's `missing` holds the layers that no fused kernel names. A plan that names no layers
    at all can only be counted: `missing` is then empty, and `found` tells.
    """
    expected = expected_fused(model)
    fused = [kernel for kernel in kernels(plan) if kernel.fused_attention]
    count = sum(b"_mha" in bytes(name) for name in _NAME.findall(plan))
    if count and not any(kernel.layers for kernel in fused):
        return FusedAttention(len(expected), count)
    named = {layer for kernel in fused for layer in kernel.layers}
    missing = tuple(layer.name for layer in expected if layer.name not in named)
    return FusedAttention(len(expected), len(expected) - len(missing), missing)


def _shapes(model: onnx.ModelProto) -> dict[str, Sequence[int | None]]:
    def read() -> Iterator[tuple[str, list[int | None]]]:
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            tensor = value.type.tensor_type
            if tensor.HasField("shape"):
                yield (
                    value.name,
                    [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim],
                )

    return dict(read())


def _rows(shape: Sequence[int | None] | None) -> int | None:
    """Query rows: the last axis but one, both of [B, heads, N, N] and of [B, N, C]."""
    return shape[-2] if shape is not None and len(shape) >= 2 else None
