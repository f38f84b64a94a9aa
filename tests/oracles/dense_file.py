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

#: What may stand between Softmax and ·V, without mixing one key's probability into another's.
_AFTER_SOFTMAX = {"Cast", "Identity", "Dropout", "Transpose", "Reshape", "Where", "IsNaN"}
_SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
POOLS = {"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", *_SUMS}


class InapplicableError(Exception):
    """No mask says what this reduction does, or the oracle cannot find where to put it."""


@dataclass(frozen=True)
class Tokens:
    """How the token axis is laid out: `before` fixed tokens, `patches`, `after` fixed tokens.

    `group`: how many consecutive patches are kept or dropped as one.
    """

    before: int
    patches: int
    after: int = 0
    group: int = 1

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


@dataclass(frozen=True)
class Core:
    """An attention of the dense file. logits: name of the softmax's input (or the Attention's
    query); shape: of the logits at the batch that was run."""

    node: int
    form: str
    logits: str
    shape: tuple[int, ...]

    @property
    def square(self) -> bool:
        return self.shape[-1] == self.shape[-2]


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
        if node.op_type == "Softmax":
            return [node.input[0]]
        if node.op_type == "Attention":
            return list(node.input[:2])
        if node.op_type == "MatMul":
            return list(node.input)
        return [node.input[0]] if node.op_type in POOLS else []

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


# ---- finding attentions and pools ----------------------------------------------------------------


def find_cores(file: File) -> list[Core]:
    """Every attention over live keys, in the file's order."""
    found = []
    for i, node in enumerate(file.nodes):
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            q, k = (file.values.get(name) for name in node.input[:2])
            if q is None or k is None:
                continue
            heads = q.shape[1] if q.ndim == 4 else int(attribute_of(node, "q_num_heads", 0))
            shape = (q.shape[0], heads, q.shape[-2], k.shape[-2])
            found.append(Core(i, "op", node.input[0], shape))
        elif node.op_type == "Softmax" and node.input[0] in file.values:
            shape = file.values[node.input[0]].shape
            axis = int(attribute_of(node, "axis", -1)) % max(len(shape), 1)
            if len(shape) >= 3 and axis == len(shape) - 1 and _weighs(file, node):
                found.append(Core(i, "softmax", node.input[0], tuple(shape)))
    return found


def _weighs(file: File, softmax: onnx.NodeProto) -> bool:
    """Whether the probabilities are the left operand of a product with live values."""
    chances = _chances(file, softmax)
    products = (n for n in file.nodes if n.op_type in ("MatMul", "Einsum"))
    return any(n.input[0] in chances and n.input[1] in file.live for n in products)


def _chances(file: File, softmax: onnx.NodeProto) -> set[str]:
    """The probabilities of a softmax, and other views of them."""
    seen, todo = set(softmax.output[:1]), list(softmax.output[:1])
    while todo:
        for i in file.readers.get(todo.pop(), ()):
            node = file.nodes[i]
            if node.op_type in _AFTER_SOFTMAX and node.output[0] not in seen:
                seen.add(node.output[0])
                todo.append(node.output[0])
    return seen


def unmasked_sums(file: File, cores: Sequence[Core], tokens: Tokens) -> list[int]:
    """Products that sum over the tokens with weights that are no probabilities of `cores`, such as
    those of linear attention: no mask reaches them."""
    chances: set[str] = set()
    for core in cores:
        chances |= _chances(file, file.nodes[core.node])
    found = []
    for i, node in enumerate(file.nodes):
        if node.op_type != "MatMul" or not all(n in file.values for n in node.input):
            continue
        right = file.values[node.input[1]].shape
        if len(right) < 2 or right[-2] not in (tokens.total, tokens.patches):
            continue
        if node.input[0] not in chances and all(n in file.live for n in node.input):
            found.append(i)
    return found


def pooled_axes(file: File, node: onnx.NodeProto, tokens: Tokens) -> tuple[int, ...] | None:
    """The axes of the input that a pool reduces, where these are the token axis."""
    shape = file.values[node.input[0]].shape
    rank = len(shape)
    if node.op_type == "GlobalAveragePool":
        axes: Any = range(2, rank)
    else:
        axes = attribute_of(node, "axes", None)
        if axes is None and len(node.input) > 1 and node.input[1]:
            axes = file.constant(node.input[1])
            if axes is None:
                raise InapplicableError(f"{node.op_type} over axes computed at run time")
        axes = range(1, rank) if axes is None else np.ravel(axes)
    gone = tuple(sorted(int(a) % rank for a in axes))
    sizes = (tokens.total, tokens.patches)
    if prod(shape[a] for a in gone) not in sizes or 0 in gone:
        return None
    # The norm of a row reduces the last axis; so does a mean over [B, C, N].
    rows = [a for a in range(1, rank - 1) if a not in gone and shape[a] in sizes]
    return None if gone == (rank - 1,) and (rows or rank < 3) else gone
