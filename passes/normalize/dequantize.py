"""Integer products become products of floats: one form to analyse and reduce.

Three spellings of a quantised model are read. Files that quantise activations while they run take
the range of each tensor from all of its values, those of all tokens, so that fewer tokens would
change it. There is no right value for that: such products are read as fp32, with the stored
weights as what they stand for. Files with operators that take and give quantised tensors become
QuantizeLinear and DequantizeLinear around the operator itself, which is what they are defined as.
Weights that are packed in a few bits become the floats that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.errors import ModelError
from tcompile.core.graph import attr, bypass, is_const, is_standard, producer, replace_uses, value
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.op_traits import MOVES

_SINGLE = np.dtype(np.float32)
_HINT = "build from the model as it was before it was quantised"
#: Products of whole numbers, and what they are products of floats.
_INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
#: Ops of quantised tensors that have one or two: the ops of floats.
_FLOAT_OPS = {
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSoftmax": "Softmax",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
}
#: Ops that give values of their first input, and of no other.
_VIEWS = MOVES - {"Concat"}
#: Attributes that only the ops of quantised tensors have.
_OWN_ATTRIBUTES = ("opset", "channels_last")


@dataclass(frozen=True)
class _Dynamic:
    """Tensors that are quantised at run time, each by the name of the floats that it is made of.

    Attributes:
        floats: tensors that hold floats instead of whole numbers now.
        scales: scales that were measured.
        zeros: zero points that were measured.
    """

    floats: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)


def dequantize(graph: gs.Graph) -> int:
    """Read integer products as floats; returns how many were quantised while the model runs.

    Raises:
        ModelError: something else reads the whole numbers of a tensor that is quantised at run
            time, or of such a product.
    """
    for node in list(graph.nodes):
        if node.op.startswith(("QLinear", "QGemm")):
            _apart(graph, node)
        elif node.op == "MatMulNBits":
            _unpack(graph, node)
    dynamic = _unquantised(graph)
    count = 0
    for node in list(graph.nodes):
        if is_standard(node) and node.op in _INTEGER:
            _product(graph, node, dynamic)
            count += 1
    toposort(drop_dead(graph))
    return count


# ---- quantised at run time -----------------------------------------------------------------------


def _unquantised(graph: gs.Graph) -> _Dynamic:
    """Let what reads a tensor quantised at run time read its floats."""
    dynamic = _Dynamic()
    for node in [n for n in graph.nodes if n.op == "DynamicQuantizeLinear"]:
        source = node.inputs[0]
        quantised, scale, zero = node.outputs
        dynamic.scales[scale.name] = dynamic.zeros[zero.name] = source.name
        _check_readers(graph, quantised, source.name, dynamic)
        replace_uses(quantised, source)
        dynamic.floats[source.name] = source.name
    for node in [n for n in graph.nodes if n.op == "DequantizeLinear"]:
        tensor, scale, *zeros = node.inputs
        made_of = dynamic.floats.get(tensor.name)
        if made_of is None:
            continue
        _check_zero(node, made_of, zeros, dynamic)
        if dynamic.scales.get(scale.name) != made_of:
            raise ModelError(
                f"{node.op} '{node.name}' has another scale than the one that was measured for "
                f"'{made_of}', which is quantised at run time",
                hint=_HINT,
            )
        if not bypass(graph, node, tensor):
            node.op, node.attrs, node.inputs = "Identity", {}, [tensor]
    return dynamic


def _check_readers(graph: gs.Graph, tensor: gs.Tensor, source: str, dynamic: _Dynamic) -> None:
    """Follow views of a quantised tensor to the products that read it.

    Raises:
        ModelError: something else does.
    """
    readers = list(tensor.outputs)
    if any(tensor is out for out in graph.outputs):
        raise ModelError(f"output '{tensor.name}' is quantised at run time", hint=_HINT)
    for node in readers:
        if is_standard(node) and (node.op in _INTEGER or node.op == "DequantizeLinear"):
            continue
        if not (is_standard(node) and node.op in _VIEWS):
            raise ModelError(
                f"{node.op} '{node.name}' reads the whole numbers of '{tensor.name}', which is "
                "quantised at run time: tcompile reads such tensors as floats",
                hint=_HINT,
            )
        for out in node.outputs:
            out.dtype = _SINGLE
            dynamic.floats[out.name] = source
            _check_readers(graph, out, source, dynamic)


def _check_zero(node: gs.Node, source: str, zeros: Sequence[gs.Tensor], dynamic: _Dynamic) -> None:
    """Refuse a zero point that is not the one of the tensor that it is taken from."""
    if not zeros or zeros[0].is_empty() or dynamic.zeros.get(zeros[0].name) != source:
        raise ModelError(
            f"{node.op} '{node.name}' has another zero point than the one that was measured for "
            f"'{source}', which is quantised at run time",
            hint=_HINT,
        )


def _product(graph: gs.Graph, node: gs.Node, dynamic: _Dynamic) -> None:
    """MatMulInteger or ConvInteger as a product of floats; the scale of stored weights goes into
    them where nothing else reads the product."""
    a, b, *zeros = node.inputs
    zeros += [gs.Variable.empty()] * (2 - len(zeros))
    conv = node.op == "ConvInteger"
    out = node.outputs[0]
    if any(out is t for t in graph.outputs):
        raise ModelError(
            f"output '{out.name}' is the whole numbers that {node.op} '{node.name}' gives, which "
            "tcompile reads as a product of floats",
            hint=_HINT,
        )
    measured: list[str] = []
    for operand, zero in zip((a, b), zeros, strict=True):
        if operand.name in dynamic.floats:
            measured.append(dynamic.floats[operand.name])
            _check_zero(node, measured[-1], [zero], dynamic)
    for reader in list(out.outputs):
        if reader.op != "Cast" or attr(reader, "to") != onnx.TensorProto.FLOAT:
            raise _unscaled(reader, node)
        _take_scales(graph, reader.outputs[0], node, measured, dynamic)
    node.inputs = [
        _as_floats(graph, a, zeros[0], dynamic, behind=0 if conv else 1),
        _as_floats(graph, b, zeros[1], dynamic, behind=len(b.shape) - 1 if conv else 0),
    ]
    node.op, out.dtype = _INTEGER[node.op], _SINGLE
    for cast in list(out.outputs):
        bypass(graph, cast, cast.inputs[0])
    _scale_weights(graph, node, axis=0 if conv else -1)


def _unscaled(reader: gs.Node, product: gs.Node) -> ModelError:
    return ModelError(
        f"{reader.op} '{reader.name}' reads the whole numbers that {product.op} "
        f"'{product.name}' gives: tcompile reads that product as one of floats",
        hint=_HINT,
    )


def _take_scales(
    graph: gs.Graph, tensor: gs.Tensor, product: gs.Node, measured: list[str], dynamic: _Dynamic
) -> None:
    """Take the measured scales out of what a product is multiplied by: its floats have them.

    Args:
        tensor: the product, or that times some scales.
        measured: the operands whose scales it is still to be multiplied by.

    Raises:
        ModelError: something reads it before that.
    """
    if not measured:
        return
    if any(tensor is out for out in graph.outputs):
        raise ModelError(
            f"output '{tensor.name}' is what {product.op} '{product.name}' gives without all of "
            "its scales: tcompile reads that product as one of floats",
            hint=_HINT,
        )
    for reader in list(tensor.outputs):
        sides = [i for i, t in enumerate(reader.inputs) if t is not tensor]
        if reader.op != "Mul" or not is_standard(reader) or len(sides) != 1:
            raise _unscaled(reader, product)
        factors = _factors(reader.inputs[sides[0]], dynamic)
        if factors is None:
            raise _unscaled(reader, product)
        left, others = list(measured), np.ones((), np.float32)
        for factor in factors:
            source = dynamic.scales.get(factor.name)
            if source is None:
                others = np.asarray(others * value(factor).astype(np.float32))
            elif source in left:
                left.remove(source)
            else:
                raise _unscaled(reader, product)
        name = f"{reader.name}/scale_{product.name}"
        reader.inputs[sides[0]] = gs.Constant(name, others.astype(np.float32))
        _take_scales(graph, reader.outputs[0], product, left, dynamic)


def _factors(tensor: gs.Tensor, dynamic: _Dynamic) -> list[gs.Tensor] | None:
    """The stored and measured scales that a tensor is the product of; None where it is not."""
    if is_const(tensor) or tensor.name in dynamic.scales:
        return [tensor]
    maker = producer(tensor)
    if maker is None or maker.op != "Mul" or not is_standard(maker):
        return None
    found = [_factors(t, dynamic) for t in maker.inputs]
    return None if None in found else [t for some in found for t in some or ()]


def _as_floats(
    graph: gs.Graph, tensor: gs.Tensor, zero: gs.Tensor, dynamic: _Dynamic, *, behind: int
) -> gs.Tensor:
    """An operand, its zero point taken away.

    Args:
        behind: the number of axes behind the one that a vector of zero points runs along.
    """
    if tensor.name in dynamic.floats:
        return tensor
    if is_const(tensor) and (zero.is_empty() or is_const(zero)):
        whole = value(tensor).astype(np.float32)
        if not zero.is_empty():
            offset = value(zero).astype(np.float32)
            whole = whole - offset.reshape(-1, *(1,) * behind if offset.size > 1 else ())
        return gs.Constant(f"{tensor.name}/fp32", whole)
    wide = _cast(graph, tensor)
    if zero.is_empty():
        return wide
    less = gs.Variable(f"{wide.name}/from_zero", _SINGLE)
    graph.nodes.append(gs.Node("Sub", less.name, {}, [wide, _cast(graph, zero)], [less]))
    return less


def _cast(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor:
    wide = gs.Variable(f"{tensor.name}/fp32_{len(graph.nodes)}", _SINGLE)
    to = {"to": int(onnx.TensorProto.FLOAT)}
    graph.nodes.append(gs.Node("Cast", wide.name, to, [tensor], [wide]))
    return wide


def _scale_weights(graph: gs.Graph, node: gs.Node, axis: int) -> None:
    """Multiply stored weights by the scale that the product is multiplied by: one number, or one
    for each column along `axis` of the weights."""
    out, weights = node.outputs[0], node.inputs[1]
    readers = [reader for reader in out.outputs if reader.outputs]  # a bypassed one has none
    if not is_const(weights) or len(readers) != 1 or any(out is t for t in graph.outputs):
        return
    (multiply,) = readers
    if multiply.op != "Mul":
        return
    scale = _stored_scale(next(t for t in multiply.inputs if t is not out))
    if scale is None:
        return
    along = [1] * len(weights.shape)
    along[axis] = int(weights.shape[axis])
    # A product has at least one axis, and a convolution's has those of its weights.
    least = len(weights.shape) if axis == 0 else 1 if out.shape is None else len(out.shape)
    if scale.size not in (1, along[axis]) or len(scale.shape) > least or len(along) < 2:
        return
    if scale.size > 1:
        # Along the channels of a convolution, or the last axis of a product, and nowhere else;
        # counted from the back, as axes are that are broadcast.
        behind = len(weights.shape) - 2 if axis == 0 else 0
        if len(scale.shape) <= behind or scale.shape[-1 - behind] != scale.size:
            return
        scale = scale.reshape(along)
    scaled = value(weights).astype(np.float32) * scale.reshape(-1 if scale.size == 1 else along)
    node.inputs[1] = gs.Constant(f"{weights.name}/scaled_{node.name}", scaled.astype(np.float32))
    bypass(graph, multiply, out)


def _stored_scale(tensor: gs.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """The value of a stored scale, or of a product of stored scales; None where it is computed."""
    if is_const(tensor):
        return value(tensor).astype(np.float32)
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None or maker.op != "Mul" or not all(map(is_const, maker.inputs)):
        return None
    first, second = (value(t).astype(np.float32) for t in maker.inputs)
    return np.asarray(first * second, np.float32)


# ---- weights of a few bits -----------------------------------------------------------------------


def _unpack(graph: gs.Graph, node: gs.Node) -> None:
    """A product with weights that are packed in a few bits: with those weights as floats."""
    inputs = [*node.inputs, *[gs.Variable.empty()] * (6 - len(node.inputs))]
    x, packed, scales, zeros, order, bias = inputs[:6]
    bits, block = int(attr(node, "bits", 4)), int(attr(node, "block_size"))
    rows, columns = int(attr(node, "N")), int(attr(node, "K"))
    stored = [t for t in (packed, scales, zeros) if not t.is_empty()]
    whole = zeros.is_empty() or np.dtype(zeros.dtype) == np.uint8
    if bits not in (4, 8) or not order.is_empty() or not all(map(is_const, stored)) or not whole:
        raise ModelError(
            f"{node.op} '{node.name}' has weights of {bits} bits in a form that tcompile does not "
            "read",
            hint=_HINT,
        )
    blocks = -(-columns // block)
    scale = value(scales).astype(np.float32).reshape(rows, blocks, 1)
    zero = np.full((rows, blocks, 1), 1 << (bits - 1), np.float32)
    if not zeros.is_empty():
        zero = _bits(value(zeros).reshape(rows, -1), bits)[:, :blocks, None]
    weights = (_bits(value(packed).reshape(rows, blocks, -1), bits) - zero) * scale
    dense = np.ascontiguousarray(weights.reshape(rows, -1)[:, :columns].T, np.float32)
    node.op, node.domain, node.attrs = "MatMul", None, {}
    node.inputs = [x, gs.Constant(f"{packed.name}/fp32", dense)]
    if not bias.is_empty():
        out = node.outputs[0]
        product = gs.Variable(f"{out.name}/product", _SINGLE)
        node.outputs = [product]
        graph.nodes.append(gs.Node("Add", f"{node.name}/bias", {}, [product, bias], [out]))


def _bits(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """The numbers in the bytes along the last axis, that of the lowest bits first."""
    if bits == 8:
        return packed.astype(np.float32)
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1).astype(np.float32)


# ---- operators of quantised tensors --------------------------------------------------------------


def _apart(graph: gs.Graph, node: gs.Node) -> None:
    """Spell an operator of quantised tensors with QuantizeLinear and DequantizeLinear."""
    inputs = list(node.inputs)
    plain = {k: v for k, v in node.attrs.items() if k not in _OWN_ATTRIBUTES}
    if node.op in ("QLinearMatMul", "QLinearConv"):
        conv = node.op == "QLinearConv"
        a = _dequantised(graph, inputs[:3])
        b = _dequantised(graph, inputs[3:6], axis=0 if conv else -1)
        operands, result = [a, b], inputs[6:8]
        if conv and len(inputs) > 8 and not inputs[8].is_empty():
            operands.append(_bias(inputs[8], inputs[1], inputs[4], node))
        op = "Conv" if conv else "MatMul"
    elif node.op == "QLinearConcat":
        result = inputs[:2]
        operands = [_dequantised(graph, inputs[i : i + 3]) for i in range(2, len(inputs), 3)]
        op = "Concat"
    elif node.op in _FLOAT_OPS and len(inputs) % 3 == 2 and not attr(node, "channels_last", 0):
        op, result = _FLOAT_OPS[node.op], inputs[-2:]
        operands = [_dequantised(graph, inputs[i : i + 3]) for i in range(0, len(inputs) - 2, 3)]
    else:
        raise ModelError(
            f"{node.op} '{node.name}' is an operator of quantised tensors that tcompile does not "
            "read",
            hint=_HINT,
        )
    out = gs.Variable(f"{node.outputs[0].name}/fp32", _SINGLE)
    if op == "Softmax" and int(attr(node, "opset", 13)) < 13:
        made = _flat(node, operands[0], out)
    else:
        made = [gs.Node(op, f"{node.name}/fp32", plain, operands, [out])]
    quantise = gs.Node("QuantizeLinear", f"{node.name}/quantize", {}, [out, *result], [])
    (target,) = node.outputs
    node.inputs.clear()
    node.outputs.clear()
    quantise.outputs.append(target)
    position = next(i for i, n in enumerate(graph.nodes) if n is node)
    graph.nodes[position : position + 1] = [*made, quantise]


def _flat(node: gs.Node, operand: gs.Tensor, out: gs.Tensor) -> list[gs.Node]:
    """A Softmax as it was before opset 13: over the axis and all behind it at once."""
    name, axis = f"{node.name}/fp32", int(attr(node, "axis", -1))
    rank = len(node.inputs[0].shape or ())
    if axis == -1 or axis == rank - 1:
        return [gs.Node("Softmax", name, {"axis": -1}, [operand], [out])]
    dims, flat, chances = (gs.Variable(f"{name}/{part}") for part in ("dims", "flat", "chances"))
    return [
        gs.Node("Shape", dims.name, {}, [operand], [dims]),
        gs.Node("Flatten", flat.name, {"axis": axis}, [operand], [flat]),
        gs.Node("Softmax", name, {"axis": -1}, [flat], [chances]),
        gs.Node("Reshape", f"{name}/reshape", {}, [chances, dims], [out]),
    ]


def _dequantised(graph: gs.Graph, operand: Sequence[gs.Tensor], axis: int = -1) -> gs.Tensor:
    """Return the floats that a quantised tensor stands for.

    Args:
        operand: the tensor, its scale, its zero point.
        axis: of the tensor, which a vector of scales runs along.
    """
    tensor, scale, _ = operand
    out = gs.Variable(f"{tensor.name}/dequantized_{len(graph.nodes)}", _SINGLE)
    attrs = {"axis": axis} if len(scale.shape or ()) == 1 else {}
    inputs = [t for t in operand if not t.is_empty()]
    graph.nodes.append(gs.Node("DequantizeLinear", out.name, attrs, inputs, [out]))
    return out


def _bias(bias: gs.Tensor, x: gs.Tensor, w: gs.Tensor, node: gs.Node) -> gs.Tensor:
    """The bias of a quantised convolution, in units of both scales."""
    if not (is_const(bias) and is_const(x) and is_const(w)):
        raise ModelError(f"{node.op} '{node.name}' computes its bias or scales", hint=_HINT)
    scale = value(x).astype(np.float32) * value(w).astype(np.float32)
    return gs.Constant(f"{bias.name}/fp32", (value(bias) * scale.reshape(-1)).astype(np.float32))
