"""A dense ONNX file as the masked oracle sees it: where its attentions and its token pools are.

Found in the *source* file, from the shapes that a run shows and nothing else: no shape inference,
no normal form, nothing of the compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from tests.oracles.compare import infer

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

_SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
#: Arithmetic on the sizes of a tensor.
_ON_SIZES = {"Gather", "Slice", "Squeeze", "Unsqueeze", "Sub", "Add", "Mul", "Div", "Mod", "Cast"}
POOLS = {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", *_SUMS}


class InapplicableError(Exception):
    """No mask says what this reduction does, or the oracle cannot find where to put it."""


@dataclass(frozen=True)
class Tokens:
    """Layout of the token axis: `before` fixed tokens, `patches`, `after` fixed tokens.

    grid: how the patches lie; sides: of the groups that stay or go as one, [2, 2] of an 8 x 8 grid.
    """

    before: int
    patches: int
    after: int = 0
    grid: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()

    @property
    def group(self) -> int:
        """Patches in a group."""
        return prod(self.sides)

    def members(self) -> Array:
        """[groups, patches in each]: groups row by row, and so the patches inside each."""
        if self.group == 1:
            return np.arange(self.patches)[:, None]
        places = np.arange(self.patches).reshape(self.grid)
        dims = [d for n, side in zip(self.grid, self.sides, strict=True) for d in (n // side, side)]
        order = [*range(0, len(dims), 2), *range(1, len(dims), 2)]
        return places.reshape(dims).transpose(order).reshape(-1, self.group)

    def groups_of(self, kept: Array) -> Array:
        """[B, K] patches, group by group → [B, K / g] numbers of their groups."""
        owner = np.empty(self.patches, dtype=np.int64)
        owner[self.members()] = np.arange(self.patches // self.group)[:, None]
        return owner[kept[:, :: self.group]]

    @property
    def total(self) -> int:
        return self.before + self.patches + self.after

    def full(self, kept: Array) -> Array:
        """[B, K] kept patches → [B, before+K+after] positions on the token axis."""
        rows = len(kept)
        first = np.broadcast_to(np.arange(self.before), (rows, self.before))
        last = np.arange(self.before + self.patches, self.total)
        last = np.broadcast_to(last, (rows, self.after))
        return np.concatenate([first, kept + self.before, last], axis=1)


# ---- a graph and what runs through it ------------------------------------------------------------


class File:
    """The dense file, with the values of its tensors on some images."""

    def __init__(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = exposing(model, [])
        _sort(model.graph)
        self.model, self.feed = model, dict(feed)
        self.nodes = list(model.graph.node)
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.stored = {t.name: t for t in model.graph.initializer}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in _reads(node):
                self.readers.setdefault(name, []).append(i)
        self.live = self._descendants(feed)
        wanted = [n for node in self.nodes for n in self._interesting(node)]
        made = [n for n in wanted if n in self.maker or n in feed]
        self.values = self.run(model, made)
        self.values |= {n: numpy_helper.to_array(t) for n, t in self.stored.items() if n in wanted}

    def _interesting(self, node: onnx.NodeProto) -> list[str]:
        """The tensors whose shapes tell what the node does."""
        if not any(name in self.live for name in node.input):
            return []
        if node.op_type in ("Softmax", "LogSoftmax"):
            return [node.input[0]]
        if node.op_type == "Attention":
            return list(node.input[:2])
        if node.op_type == "MatMul":
            return list(node.input)
        sizes = node.op_type == "Cast" and self._of_sizes(node.input[0])
        pooling = node.op_type in POOLS or node.op_type == "Einsum"
        return [node.input[0]] if pooling or sizes else []

    def _of_sizes(self, name: str) -> bool:
        """Return whether a tensor is made of sizes."""
        while name in self.maker:
            node = self.nodes[self.maker[name]]
            if node.op_type in ("Shape", "Size"):
                return True
            if node.op_type not in _ON_SIZES:
                return False
            name = node.input[0]
        return False

    def _descendants(self, names: Iterable[str]) -> set[str]:
        """Every tensor that depends on one of these; nodes need not be in order."""
        found, todo = set(names), list(names)
        while todo:
            for i in self.readers.get(todo.pop(), ()):
                fresh = [n for n in self.nodes[i].output if n and n not in found]
                found.update(fresh)
                todo.extend(fresh)
        return found

    def below(self, node: int) -> set[str]:
        """Every tensor that depends on the node's outputs, these included."""
        return self._descendants(self.nodes[node].output)

    def stream(self, core: int, place: str) -> str:
        """The residual stream behind an attention: after its Add (`attn`), after the Add of the
        MLP (`block`), or past the norm that follows (`output`). Where there is no such Add, the
        place before."""
        found = self._first_add(core)
        if place == "attn" or found is None:
            return found or self.nodes[core].output[0]
        starts = {found} | {n.output[0] for n in self._norms(found)}
        below = self._descendants(starts)
        adds = [n for n in self.nodes if n.op_type == "Add" and starts & set(n.input)]
        found = next((n.output[0] for n in adds if below.issuperset(n.input)), found)
        while place == "output" and len(self.readers.get(found, ())) == 1 and self._norms(found):
            found = self._norms(found)[0].output[0]
        return found

    def origin(self, name: str) -> str:
        """The tensor that this one is a copy of."""
        while (i := self.maker.get(name)) is not None:
            if self.nodes[i].op_type not in ("Identity", "Dropout"):
                break
            name = self.nodes[i].input[0]
        return name

    def entering(self, core: int) -> str | None:
        """The residual stream before an attention: what its result is added to."""
        found = self._first_add(core)
        if found is None:
            return None
        below = self.below(core)
        return next(n for n in self.nodes[self.maker[found]].input if n not in below)

    def _first_add(self, core: int) -> str | None:
        """The first sum of the attention's result and something that does not come from it."""
        below = self.below(core)
        for node in self.nodes:
            inside = [name in below for name in node.input]
            if node.op_type == "Add" and sum(inside) == 1:
                other = node.input[inside.index(False)]
                if other in self.live and self.constant(other) is None:
                    return node.output[0]
        return None

    def _norms(self, name: str) -> list[onnx.NodeProto]:
        kinds = ("LayerNormalization", "RMSNormalization", "Identity", "Cast")
        readers = (self.nodes[i] for i in self.readers.get(name, ()))
        return [node for node in readers if node.op_type in kinds]

    def readers_of(self, names: Iterable[str]) -> set[int]:
        """The nodes that read one of these tensors."""
        return {i for name in names for i in self.readers.get(name, ())}

    def behind(self, name: str) -> set[str]:
        """The tensor and all that depends on it."""
        return self._descendants([name])

    def run(self, model: onnx.ModelProto, extra: Sequence[str], **more: Array) -> Arrays:
        """Outputs and further tensors of the model."""
        return infer(exposing(model, extra), {**self.feed, **more})

    def constant(self, name: str) -> Array | None:
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        made = self.nodes[self.maker[name]] if name in self.maker else None
        if made is not None and made.op_type == "Constant":
            for attribute in made.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
                if attribute.name in ("value_ints", "value_int"):
                    return np.asarray(helper.get_attribute_value(attribute))
        return None


def _sort(graph: onnx.GraphProto) -> None:
    """Bring the nodes into execution order."""
    left, known = list(graph.node), {t.name for t in graph.initializer} | {""}
    known |= {i.name for i in graph.input}
    made = {name for node in left for name in node.output}
    order: list[onnx.NodeProto] = []
    while left:
        ready = []
        for node in left:
            if all(name in known or name not in made for name in _reads(node)):
                ready.append(node)
                known.update(node.output)
        if not ready:
            return  # a circle: ONNX Runtime will say so
        order += ready
        done = {id(node) for node in ready}
        left = [node for node in left if id(node) not in done]
    del graph.node[:]
    graph.node.extend(order)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors a node reads, those that its branches take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            for inner in graph.node:
                yield from _reads(inner)


def exposing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these tensors as further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # dims written there may hold for another batch
    known = {o.name for o in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def attribute_of(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def feed_for(model: onnx.ModelProto, batch: int = 2, seed: int = 0) -> Arrays:
    """Random inputs for a model: images from N(0, 1), integers 0 or 1, `batch` where free."""
    rng = np.random.default_rng(seed)
    feed: Arrays = {}
    stored = {t.name for t in model.graph.initializer}
    for info in model.graph.input:
        if info.name in stored:
            continue
        kind = info.type.tensor_type
        dims = [
            d.dim_value or (int(d.dim_param) if d.dim_param.isdigit() else batch)
            for d in kind.shape.dim
        ]
        if kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            value = rng.standard_normal(dims)
        else:
            value = rng.integers(0, 2, dims)
        feed[info.name] = value.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feed
