"""A graph as a flat list of steps with shapes: token ops inlined, the batch a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import attentions
from tcompile.analysis.flops import Numbers, numbers_of, token_op_body
from tcompile.core.domain import DOMAIN
from tcompile.core.errors import ModelError
from tcompile.core.graph import attr, is_const, producer

_ATTRIBUTES = (
    "axis",
    "axes",
    "perm",
    "group",
    "transA",
    "transB",
    "batch_dims",
    "equation",
    "q_num_heads",
    "kv_num_heads",
    "num_heads",
    "keepdims",
)


@dataclass(frozen=True)
class Value:
    """A tensor: `floating` ones take the device's item size, others `itemsize` bytes."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    floating: bool = True
    itemsize: int = 4

    @property
    def count(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One standard ONNX operator; `reads` and `writes` leave out what is empty."""

    name: str
    op: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    attributes: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Steps:
    """The steps of a graph in the order in which they run.

    Attributes:
        outputs: names of the graph's outputs.
        attentions: positions of the steps of each attention that a fused kernel could compute, from
            Q·Kᵀ to ·V. Nothing else reads what lies between.
    """

    steps: tuple[Step, ...]
    outputs: frozenset[str]
    attentions: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Tensor → position of the step that writes it."""
        return {value.name: i for i, step in enumerate(self.steps) for value in step.writes}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[int]]:
        """Tensor → positions of the steps that read it."""
        found: dict[str, list[int]] = {}
        for position, step in enumerate(self.steps):
            for value in step.reads:
                found.setdefault(value.name, []).append(position)
        return found


def steps_of(graph: gs.Graph, batch: int) -> Steps:
    """Return the steps of a graph for a number of images.

    Args:
        graph: sorted topologically, shapes known; token ops are replaced by their bodies.
        batch: what a free batch is taken to be.

    Raises:
        ModelError: a tensor whose shape is not known.
    """
    seen: dict[str, Value] = {}
    found: list[Step] = []
    places: dict[int, int] = {}
    for node in [n for n in graph.nodes if n.op != "Constant"]:
        reads, writes = _values(node.inputs, batch, seen), _values(node.outputs, batch, seen)
        if node.domain == DOMAIN:
            found.extend(_inlined(node, reads, writes))
        else:
            places[id(node)] = len(found)
            kept = {k: attr(node, k) for k in _ATTRIBUTES if k in node.attrs}
            found.append(Step(str(node.name), str(node.op), reads, writes, kept))
    whole = [m for m in attentions(graph) if not m.unfused_ops and not m.read_elsewhere(graph)]
    return Steps(
        tuple(found),
        frozenset(t.name for t in graph.outputs),
        tuple(tuple(places[id(n)] for n in m.nodes) for m in whole),
    )


def _values(tensors: Iterable[gs.Tensor], batch: int, seen: dict[str, Value]) -> tuple[Value, ...]:
    named = [t for t in tensors if t.name]
    for tensor in named:
        if tensor.name not in seen:
            seen[tensor.name] = _value(tensor, batch)
    return tuple(seen[t.name] for t in named)


def _value(tensor: gs.Tensor, batch: int) -> Value:
    if tensor.shape is None:
        if not tensor.outputs:  # one of several outputs, which nothing reads
            return Value(tensor.name, (0,))
        raise ModelError(
            "a tensor has no shape, so that no latency can be modelled", where=tensor.name
        )
    dims = tuple(
        batch * int(d.partition("*")[2] or 1) if isinstance(d, str) else int(d)
        for d in tensor.shape
    )
    maker = producer(tensor)
    constant = is_const(tensor) or (maker is not None and maker.op == "Constant")
    if tensor.dtype is None or isinstance(tensor.dtype, int):  # unknown, or bfloat16 and smaller
        return Value(tensor.name, dims, constant)
    kind = np.dtype(tensor.dtype)
    return Value(tensor.name, dims, constant, kind.kind == "f", min(kind.itemsize, 4))


def _inlined(call: gs.Node, reads: tuple[Value, ...], writes: tuple[Value, ...]) -> list[Step]:
    """Return the steps of a token op's body, its inputs and outputs under their names outside."""
    outer = {f"i{i}": v for i, v in enumerate(reads)} | {f"o{i}": v for i, v in enumerate(writes)}
    signature = tuple((v.shape, v.floating, v.itemsize) for v in reads)

    def rename(values: Iterable[Value]) -> tuple[Value, ...]:
        return tuple(
            outer.get(v.name)
            or Value(f"{call.name}/{v.name}", v.shape, v.constant, v.floating, v.itemsize)
            for v in values
        )

    return [
        Step(f"{call.name}/{s.name}", s.op, rename(s.reads), rename(s.writes), s.attributes)
        for s in _body(str(call.op), signature, numbers_of(call))
    ]


@lru_cache(maxsize=4096)
def _body(
    op: str, signature: tuple[tuple[tuple[int, ...], bool, int], ...], numbers: Numbers
) -> tuple[Step, ...]:
    def dtype(floating: bool, itemsize: int) -> int:
        integer = onnx.TensorProto.BOOL if itemsize == 1 else onnx.TensorProto.INT64
        return int(onnx.TensorProto.FLOAT if floating else integer)

    inputs = tuple((dtype(floating, size), shape) for shape, floating, size in signature)
    return steps_of(token_op_body(op, inputs, numbers), 1).steps
