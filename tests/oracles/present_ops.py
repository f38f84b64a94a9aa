"""Results of each op on tensors that some tokens have left.

Part of the counting oracle (tests/oracles/present_walk.py). Numbers come from onnx's reference
implementation, in float64; presence goes through the same op where it only moves elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.oracles.dense_file import InapplicableError, attribute_of
from tests.oracles.present import (
    Array,
    Held,
    IllegalError,
    Total,
    birth,
    contracted,
    even,
    joined,
    kept,
    reduced,
)

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_WORDS = (
    "Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather Split Concat Expand Tile Identity",
    "Pad Dropout DepthToSpace SpaceToDepth",
    "Add Sub Mul Div Pow Max Min Where PRelu Equal Greater GreaterOrEqual Less LessOrEqual And Or",
    "Xor Not Mod Sum Mean Relu LeakyRelu Erf Sqrt Exp Log Tanh Sigmoid HardSigmoid HardSwish Gelu",
    "Clip Neg Abs Reciprocal Floor Ceil Round Sign Sin Cos Softplus Softsign Elu Selu Celu Mish",
    "Cast CastLike IsNaN IsInf ThresholdedRelu Atan QuantizeLinear DequantizeLinear",
)
VIEWS = frozenset(" ".join(_WORDS[:2]).split())
ELEMENTWISE = frozenset(" ".join(_WORDS[2:]).split())
#: What is twice as much where its input is.
_LINEAR = VIEWS | {"Neg", "Cast", "CastLike", "Relu", "LeakyRelu", "Abs"}
#: What does not change with the scale of its input.
_SCALE_FREE = {
    "LayerNormalization",
    "RMSNormalization",
    "LpNormalization",
    "ArgMax",
    "ArgMin",
    "InstanceNormalization",
    "GroupNormalization",
    "Sign",
}
#: What leaves probabilities nearly what they are.
_ROUNDING = {"Cast", "Where", "QuantizeLinear", "DequantizeLinear"}
#: A number this small keeps a division from failing.
_EPSILON = 1e-4


# ---- numbers -------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _evaluator(text: bytes, opset: int) -> Any:
    node = onnx.NodeProto.FromString(text)
    names = dict.fromkeys(n for n in node.input if n)
    graph = helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=n) for n in names],
        [onnx.ValueInfoProto(name=n) for n in node.output if n],
    )
    return ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    )


def numbers(node: onnx.NodeProto, opset: int, values: Sequence[Array | None]) -> list[Array]:
    """The node's outputs, floats as float64. Raises InapplicableError where it cannot be run."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    # Names of places, so that one evaluator serves all nodes that do the same.
    places: dict[str, str] = {"": ""}
    for name in node.input:
        places.setdefault(name, f"i{len(places)}")
    del copy.input[:], copy.output[:]
    copy.name = copy.doc_string = ""
    copy.input.extend(places[name] for name in node.input)
    copy.output.extend(name and f"o{i}" for i, name in enumerate(node.output))
    for attribute in copy.attribute:
        if copy.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = TensorProto.DOUBLE
    given = {n: v for n, v in zip(copy.input, values, strict=True) if n and v is not None}
    try:
        with np.errstate(all="ignore"):
            least = 21 if "eLinear" in node.op_type else 1  # older ones are not implemented
            found = _evaluator(copy.SerializeToString(), max(opset, least)).run(None, given)
    except Exception as error:  # whatever the reference does not implement
        raise InapplicableError(f"{node.op_type} '{node.name}': {error}") from error
    return [wide(np.asarray(v)) for v in found]


def wide(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


# ---- one op --------------------------------------------------------------------------------------


class Ops(ABC):
    """The rules; `opset` is the file's."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._rules: Mapping[str, Callable[[onnx.NodeProto, list[Held | None]], list[Held]]] = {
            **dict.fromkeys(VIEWS, self._view),
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            **dict.fromkeys(("MatMul", "Gemm", "Einsum"), self._product),
            **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization", "CumSum"), self._along),
            **dict.fromkeys(("ArgMax", "ArgMin"), self._best),
            **dict.fromkeys(("LayerNormalization", "RMSNormalization"), self._normalise),
            **dict.fromkeys(("Conv", "AveragePool", "MaxPool"), self._window),
            "Attention": self._attention,
            "BatchNormalization": self._channelwise,
            "ConstantOfShape": self._ones,
        }

    def apply(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        """The node's outputs.

        Raises:
            InapplicableError: no rule for it.
            IllegalError: it has no meaning once these tokens are gone.
        """
        there = [h for h in given if h is not None]
        fixed = all(h.fixed for h in there) and not node.op_type.startswith("Random")
        if node.op_type == "Shape" and there[0].there is not None:
            return [self._shape(node, there[0])]
        if node.op_type == "Size" and there[0].there is not None:
            size = np.asarray(there[0].full.sum())
            return [Held(np.asarray(there[0].value.size), now=size, count=True)]
        if all(h.plain for h in there):
            found = numbers(node, self.opset, [h and h.value for h in given])
            return [Held(v, fixed=fixed) for v in found]
        if node.op_type.startswith(("Reduce", "Global")):
            found = [self._reduce(node, given)]
        else:
            rule = self._rules.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise InapplicableError(f"{node.op_type} of tokens that left")
            found = rule(node, given)
        return [self._totalled(node, there, held) for held in found]

    def _totalled(self, node: onnx.NodeProto, given: Sequence[Held], out: Held) -> Held:
        """Pass on what a sum over tokens is still to be divided by."""
        where = _where(node)
        totals = [h.total for h in given if h.total is not None]
        if not totals or out.total is not None or node.op_type in _SCALE_FREE:
            return out
        first = totals[0]
        alike = all(first == t for t in totals)
        if node.op_type in ("Mul", "Div", "MatMul", "Gemm", "Einsum"):
            return out  # `_scaled` and `_product` have said it
        every = node.op_type != "Concat" or (alike and len(totals) == len(given))
        if node.op_type in _LINEAR and every:
            return replace(out, total=first)
        if node.op_type.startswith("Reduce"):
            power = {"ReduceSumSquare": 2.0}.get(node.op_type, 1.0)
            return replace(out, total=replace(first, degree=first.degree * power))
        if node.op_type == "Sqrt":
            return replace(out, total=replace(first, degree=first.degree / 2))
        others = [h for h in given if h.total is None]
        small = all(h.literal is not None and abs(h.literal) < _EPSILON for h in others)
        if node.op_type in ("Add", "Sub", "Max", "Min", "Clip") and alike and small:
            return replace(out, total=first)
        if node.op_type == "Add" and alike and first.powers:
            return replace(out, total=first)  # softmax-plus-one
        if node.op_type == "Reciprocal" and first.powers:
            return replace(out, total=replace(first, degree=-first.degree))
        for total in totals:
            total.settle(where)
        return out

    # -- sizes -------------------------------------------------------------------------------------

    def _shape(self, node: onnx.NodeProto, data: Held) -> Held:
        """Sizes are those of the dense tensor where they make shapes, and count what is there."""
        dims = np.asarray(data.value.shape, np.int64)
        now = dims.copy()
        for axis in range(data.value.ndim):
            counts = np.unique(data.full.sum(axis))
            counts = counts[counts > 0]
            if len(counts) == 1:
                now[axis] = counts[0]
        start = int(attribute_of(node, "start", 0))
        end = attribute_of(node, "end", None)
        part = slice(start, None if end is None else int(end))
        whole = node.input[0] if len(dims[part]) == len(dims) else ""
        return Held(dims[part], now=now[part], shape_of=whole, count=True)

    def _sizes(self, node: onnx.NodeProto, given: list[Held | None], out: list[Held]) -> list[Held]:
        """Arithmetic on sizes, done for the dense ones and for what is there."""
        if all(h is None or h.now is None for h in given):
            return out
        after = numbers(
            node, self.opset, [h and (h.value if h.now is None else h.now) for h in given]
        )
        sizes = []
        for held, now in zip(out, after, strict=True):
            if held.value.dtype.kind in "iu" and held.value.shape == now.shape:
                sizes.append(replace(held, now=now, count=True))
            elif held.value.shape == now.shape and held.there is None:
                sizes.append(Held(now, count=True))  # a number and no size any more
            else:
                raise InapplicableError(f"{_where(node)}: as many elements as there are tokens")
        return sizes

    def _ones(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        (shape,) = given
        assert shape is not None
        (value,) = numbers(node, self.opset, [shape.value])
        if shape.now is None or (shape.now == shape.value).all():
            return [Held(value)]
        if not shape.shape_of:
            raise InapplicableError(f"{_where(node)}: a shape that follows the tokens")
        return [kept(value, self.presence(shape.shape_of), fixed=False)]

    @abstractmethod
    def presence(self, name: str) -> Array | None:
        """Return where a tensor is there, by name."""

    # -- moving and elementwise --------------------------------------------------------------------

    def _view(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        many = len(given) if node.op_type == "Concat" else 1
        data = [h for h in given[:many] if h is not None]
        values = numbers(node, self.opset, [h and h.value for h in given])
        if all(h.there is None for h in data) and not any(h.now is not None for h in data):
            there: list[Array | None] = [None] * len(values)
            target = given[1] if node.op_type == "Expand" else None
            if target is not None and target.now is not None and target.shape_of:
                there = [self.presence(target.shape_of)]
        elif all(h.there is None for h in data):
            rest = [h and replace(h, now=None) for h in given[many:]]
            return self._sizes(node, [*given[:many], *rest], [Held(v) for v in values])
        else:
            if any(h is not None and h.there is not None for h in given[many:]):
                raise InapplicableError(f"{_where(node)}: an index made of tokens")
            # Turned over, so that what Pad adds is there.
            gone = [~h.full for h in data]
            moved = numbers(node, self.opset, [*gone, *(h and h.value for h in given[many:])])
            there = [~m.astype(bool) for m in moved[: len(values)]]
            if node.op_type == "Dropout":
                there, values = there[:1], values[:1]
        if many > 1 and len(values) == 1 and there[0] is not None:
            # Rows of tokens that have left are gone, whatever is joined to them.
            axis = int(attribute_of(node, "axis", 0))
            rows = [h.full.any(axis, keepdims=True) for h in data if h.there is not None]
            there = [there[0] & np.logical_and.reduce(rows)]
        if node.op_type == "Pad" and there[0] is not None:
            for axis in range(values[0].ndim):
                if values[0].shape[axis] != data[0].value.shape[axis] and there[0] is not None:
                    inside = data[0].full.any(axis, keepdims=True)
                    if inside.shape[:axis] == values[0].shape[:axis]:
                        there = [there[0] & inside]
        first = data[0]
        return [
            kept(v, t, others=first.others, by=first.by, count=first.count, share=first.share)
            for v, t in zip(values, there, strict=False)
        ]

    def _elementwise(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        parts = [h for h in given if h is not None]
        there = joined(parts, _where(node))
        if node.op_type in ("Mul", "Div") and any(h.total is not None for h in parts):
            return [self._scaled(node, parts, there)]
        (value,) = numbers(node, self.opset, [h and h.value for h in given])
        if there is None:
            sizes = self._sizes(node, given, [Held(value)])
            return [replace(s, count=True) for s in sizes] if any(h.count for h in parts) else sizes
        others = tuple(n for h in parts for n in h.others)
        if node.op_type in ("Mul", "Where", "Div", "And"):
            others += tuple(
                n
                for n, h in zip(node.input, given, strict=True)
                if h is not None and h.there is None and h.value.size > 1
            )
        by = next((h.by for h in parts if h.there is not None), ())
        if node.op_type in ("Mul", "Div") and len(parts) == 2 and parts[1].literal is not None:
            by += (_inverse(node, parts[1].literal),)
        elif node.op_type == "Mul" and parts[0].literal is not None:
            by += (parts[0].literal,)
        elif node.op_type not in ("Cast", "Where", "Neg"):
            by = ()
        share = node.op_type in _ROUNDING and any(h.share for h in parts)
        share |= node.op_type == "Exp" and parts[0].logs
        share |= node.op_type in ("Add", "Sub") and all(h.share for h in parts)
        share |= node.op_type in ("Mul", "Div") and parts[0].share and parts[1].there is None
        share |= node.op_type == "Mul" and parts[1].share and parts[0].there is None
        powers = node.op_type == "Exp" and not share
        weighed = node.op_type == "Mul" and any(h.share for h in parts) and not share
        return [
            kept(value, there, others=others, by=by, share=share, powers=powers, weighed=weighed)
        ]

    def _scaled(self, node: onnx.NodeProto, parts: list[Held], there: Array | None) -> Held:
        """A product or quotient of sums over tokens."""
        a, b = parts
        where = _where(node)
        again = b
        if node.op_type == "Div" and a.total is not None and b.total is None:
            again = self.counted(a.total, node.input[1], b)
        counted, b = again is not b, again
        if node.op_type == "Mul" and a.total is None:
            a, b = b, a
        (value,) = numbers(node, self.opset, [a.value, b.value])
        out = kept(value, there)
        if any(h.powers for h in parts) and any(h.total and h.total.powers for h in parts):
            return replace(out, share=True)  # a softmax by hand
        if a.total is None:  # a number divided by a sum
            assert b.total is not None
            return replace(out, total=replace(b.total, degree=-b.total.degree))
        if b.total is not None:
            if not a.total.same(b.total) or a.total.counted != b.total.counted:
                for total in (a.total, b.total):
                    total.settle(where)
                return out
            sign = -1 if node.op_type == "Div" else 1
            degree = a.total.degree + sign * b.total.degree
            if not degree and sign < 0:  # a sum over how many it goes over is a mean
                return replace(out, total=replace(a.total, counted=True))
            return replace(out, total=replace(a.total, degree=degree)) if degree else out
        if b.count or counted:
            return replace(out, total=replace(a.total, counted=True))
        if b.literal is None:
            vague = not a.total.counted
            return replace(out, total=replace(a.total, vague=a.total.vague or vague))
        total, more = a.total.times(_inverse(node, b.literal))
        return replace(out, value=out.value * more, total=total)

    @abstractmethod
    def counted(self, total: Total, name: str, divisor: Held) -> Held:
        """The divisor of a sum over tokens, counting only those that are left."""

    # -- along axes --------------------------------------------------------------------------------

    def _reduce(self, node: onnx.NodeProto, given: list[Held | None]) -> Held:
        data = given[0]
        assert data is not None
        rank = data.value.ndim
        if node.op_type.startswith("Global"):
            kind = {"GlobalAveragePool": "Mean", "GlobalMaxPool": "Max"}.get(node.op_type, "Lp")
            return reduced(data, tuple(range(2, rank)), kind, True, _where(node))
        axes = attribute_of(node, "axes", None)
        if axes is None and len(given) > 1 and given[1] is not None:
            axes = given[1].value.reshape(-1).tolist()
        if not axes and attribute_of(node, "noop_with_empty_axes", 0):
            return data
        over = tuple(int(a) % rank for a in axes) if axes else tuple(range(rank))
        keepdims = attribute_of(node, "keepdims", 1) == 1
        kind = node.op_type.removeprefix("Reduce")
        if data.there is None:
            values = numbers(node, self.opset, [h and h.value for h in given])
            return self._sizes(node, given, [Held(v, count=data.count) for v in values])[0]
        return reduced(data, over, kind, keepdims, _where(node))

    def _along(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        """Softmax and the like: over what is there."""
        data = given[0]
        assert data is not None
        if node.op_type == "CumSum":
            assert given[1] is not None
            _even_along(data, int(given[1].value.reshape(-1)[0]), _where(node))
            return [kept(numbers(node, self.opset, [h and h.value for h in given])[0], data.there)]
        axis = int(attribute_of(node, "axis", -1))
        fill = -np.inf if "Softmax" in node.op_type else 0.0
        x = data.filled(fill)
        if "Softmax" in node.op_type:
            _even_along(data, axis, _where(node))
            top = x.max(axis, keepdims=True)
            powers = np.exp(x - np.where(np.isfinite(top), top, 0))
            value = powers / np.maximum(powers.sum(axis, keepdims=True), 1e-300)
            with np.errstate(divide="ignore"):
                value = np.log(value) if node.op_type == "LogSoftmax" else value
        else:
            _even_along(data, axis, _where(node))
            (value,) = numbers(node, self.opset, [x])
        share, logs = node.op_type == "Softmax", node.op_type == "LogSoftmax"
        return [kept(np.nan_to_num(value), data.there, share=share, logs=logs)]

    def _best(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        data = given[0]
        assert data is not None
        axis, keep = int(attribute_of(node, "axis", 0)), attribute_of(node, "keepdims", 1) == 1
        there = _whole(data, (axis,), node)
        (value,) = numbers(node, self.opset, [data.value])
        return [kept(value, there if keep else np.squeeze(there, axis))]

    def _normalise(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        data, weight = given[:2]
        assert data is not None
        assert weight is not None
        axis = int(attribute_of(node, "axis", -1)) % data.value.ndim
        axes = tuple(range(axis, data.value.ndim))
        _whole(data, axes, node)
        x, over = data.value, {"axis": axes, "keepdims": True}
        if node.op_type == "LayerNormalization":
            x = x - x.mean(**over)
        x = x / np.sqrt((x * x).mean(**over) + float(attribute_of(node, "epsilon", 1e-5)))
        x = x * weight.value
        if len(given) > 2 and given[2] is not None:
            x = x + given[2].value
        return [kept(x, data.there)] + [Held(np.zeros(0))] * (len(node.output) - 1)

    def _channelwise(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        data = given[0]
        assert data is not None
        (value,) = numbers(node, self.opset, [h and h.value for h in given])
        return [kept(value, data.there)]

    def _window(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        """Return what sees a neighbourhood has to see all of it."""
        data = given[0]
        assert data is not None
        values = [h and h.value for h in given]
        rest = [None if v is None else np.ones_like(v) for v in values[1:2]]
        rest += [None if v is None else np.zeros_like(v) for v in values[2:]]
        (value, *_), (here, *_), (every, *_) = (
            numbers(node, self.opset, v)
            for v in (values, [data.full.astype(float), *rest], [np.ones(data.value.shape), *rest])
        )
        if node.op_type == "MaxPool":
            (gone,) = numbers(node, self.opset, [1 - data.full.astype(float)])
            here = np.where(gone > 0, here / 2, here)
        if ((here > 0) & (here < every - 1e-9)).any():
            if value.shape[2:] == (1,) * (value.ndim - 2):
                raise InapplicableError(f"{_where(node)}: a window over all tokens")
            raise IllegalError(f"{_where(node)}: sees neighbours that have left")
        return [kept(value, here > 0, share=data.share)]

    # -- products ----------------------------------------------------------------------------------

    def _product(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        parts = [h for h in given if h is not None]
        where = _where(node)
        if node.op_type == "Einsum":
            equation = attribute_of(node, "equation", b"").decode().replace(" ", "")
            if "->" not in equation or len(parts) > 2:
                raise InapplicableError(where)
            if len(parts) == 1 and "." in equation:
                raise InapplicableError(where)
            if len(parts) == 1:
                return [_summed(equation, parts[0], where)]
        else:
            equation = _matmul(node, parts)
        a, b = parts[:2]
        out, left, size = contracted(equation, a, b, where)
        if node.op_type == "Gemm":
            alpha, beta = (float(attribute_of(node, n, 1.0)) for n in ("alpha", "beta"))
            bias = parts[2].value * beta if len(parts) > 2 else 0.0
            out = kept(alpha * out.value + bias, out.there)
            if np.any(bias):
                for h in parts:
                    if h.total is not None:
                        h.total.settle(where)
        if left != size:
            return [_weighed(equation, node, a, b, out, left, size)]
        if any(x.share and y.fixed for x, y in ((a, b), (b, a))):
            out = replace(out, share=True)  # heads of maps, mixed
        totals = [h.total for h in (a, b) if h.total is not None]
        if not totals or (node.op_type == "Gemm" and len(parts) > 2):
            return [out]
        if len(totals) == 2:
            for total in totals:
                total.settle(where)
            return [out]
        other = b if totals[0] is a.total else a
        vague = totals[0].vague or not other.fixed  # a weight made of the image may be a share
        return [replace(out, total=replace(totals[0], vague=vague))]

    def _attention(self, node: onnx.NodeProto, given: list[Held | None]) -> list[Held]:
        """softmax(q kᵀ · scale + mask) v."""
        q, k, v = given[:3]
        assert q is not None
        assert k is not None
        assert v is not None
        odd = ("is_causal", "softcap", "qk_matmul_output_mode")
        if any(attribute_of(node, n, 0) for n in odd) or len(node.output) > 1 or len(given) > 4:
            raise InapplicableError(_where(node))
        flat = q.value.ndim == 3
        if flat:
            heads = [int(attribute_of(node, f"{n}_num_heads", 1)) for n in ("q", "kv", "kv")]
            q, k, v = (_heads(x, h) for x, h in zip((q, k, v), heads, strict=True))
        times = q.value.shape[1] // k.value.shape[1]
        k, v = (kept(np.repeat(x.value, times, 1), np.repeat(x.full, times, 1)) for x in (k, v))
        scale = float(attribute_of(node, "scale", 0.0)) or q.value.shape[-1] ** -0.5
        logits, *_ = contracted("bhqd,bhkd->bhqk", q, k, _where(node))
        value = logits.value * scale
        if len(given) > 3 and given[3] is not None:
            mask = given[3]
            if mask.there is not None:
                raise InapplicableError(_where(node))
            value = (
                np.where(mask.value, value, -np.inf)
                if mask.value.dtype == bool
                else value + mask.value
            )
        soft = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
        (chances,) = self._along(soft, [Held(value, logits.there)])
        out, *_ = contracted("bhqk,bhkd->bhqd", chances, v, _where(node))
        if flat:
            value, there = (
                np.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)
                for x in (out.value, out.full)
            )
            out = kept(value, there)
        return [out]


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


def _inverse(node: onnx.NodeProto, literal: float) -> float:
    return 1 / literal if node.op_type == "Div" else literal


def _whole(data: Held, axes: tuple[int, ...], node: onnx.NodeProto) -> Array:
    """Return where it is there, the axes one long; raises InapplicableError for a part."""
    even(data.full.sum(axes), _where(node))
    one, every = data.full.any(axes, keepdims=True), data.full.all(axes, keepdims=True)
    if (one != every).any():
        raise InapplicableError(f"{_where(node)} over some of the tokens")
    return np.asarray(one)


def _even_along(data: Held, axis: int, where: str) -> None:
    counts = np.unique(data.full.sum(axis))
    if len(counts[counts > 0]) > 1:
        raise IllegalError(f"{where}: over {counts.tolist()} of them, another number each time")


def _heads(x: Held, heads: int) -> Held:
    """[B, N, H*d] to [B, H, N, d]."""
    b, n, _ = x.value.shape
    value, there = (np.moveaxis(y.reshape(b, n, heads, -1), 2, 1) for y in (x.value, x.full))
    return kept(value, there)


def _matmul(node: onnx.NodeProto, parts: Sequence[Held]) -> str:
    """As np.einsum has it."""
    if node.op_type == "Gemm":
        left = "km" if attribute_of(node, "transA", 0) else "mk"
        right = "nk" if attribute_of(node, "transB", 0) else "kn"
        return f"{left},{right}->mn"
    left = "k" if parts[0].value.ndim == 1 else "...mk"
    right = "k" if parts[1].value.ndim == 1 else "...kn"
    out = ("..." if "." in left + right else "") + left[3:4] + right[4:5]
    return f"{left},{right}->{out}"


def _summed(equation: str, data: Held, where: str) -> Held:
    """An Einsum of one tensor: a sum over axes, and the others in another order."""
    before, after = equation.split("->")
    axes = tuple(i for i, c in enumerate(before) if c not in after)
    out = reduced(data, axes, "Sum", False, where) if axes else data
    left = [c for c in before if c in after]
    order = [left.index(c) for c in after]
    there = None if out.there is None else out.there.transpose(order)
    return replace(out, value=out.value.transpose(order), there=there)


def _weighed(
    equation: str, node: onnx.NodeProto, a: Held, b: Held, out: Held, left: int, size: int
) -> Held:
    """A product that sums over tokens: with probabilities, with a constant, or with anything."""
    for one, first in ((a, True), (b, False)):
        if one.share:
            return out
        ones = np.ones(b.value.shape if first else a.value.shape)
        pair = (one.filled(0), ones) if first else (ones, one.filled(0))
        sums = np.einsum(equation, *pair, optimize=True)
        if one.there is not None and np.allclose(sums[out.full], 1, atol=1e-4):
            return out
    data, other = (a, b) if a.there is not None else (b, a)
    others = (
        *data.others,
        *(
            ()
            if a.there is not None and b.there is not None
            else [node.input[1] if other is b else node.input[0]]
        ),
    )
    total = Total(size, left, others=others, vague=True, tokens=_tokens(data, size))
    if other.literal is None:
        vague = other.there is not None or other.fixed
        for literal in (*a.by, *b.by):
            counted, more = replace(total, vague=False).times(literal)
            if counted.counted:
                return replace(out, value=out.value * more, total=counted)
        return replace(out, total=replace(total, vague=vague))
    total, more = replace(total, vague=False).times(other.literal)
    return replace(out, value=out.value * more, total=total)


def _tokens(data: Held, size: int) -> Array | None:
    """[B, size] of a tensor with one axis of that length."""
    axes = [i for i, n in enumerate(data.value.shape) if n == size and i]
    found = birth("Sum", size, 0, data, (axes[0],)) if axes else None
    return found.tokens if found is not None else None
