"""Places of the attentions, pools and sums over tokens of a dense file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from tests.oracles.dense_file import File, InapplicableError, Tokens, attribute_of

#: What may stand between Softmax and ·V, without mixing one key's probability into another's.
_AFTER_SOFTMAX = {
    "Cast",
    "Identity",
    "Dropout",
    "Transpose",
    "Reshape",
    "Where",
    "IsNaN",
    "QuantizeLinear",
    "DequantizeLinear",
}


@dataclass(frozen=True)
class Core:
    """An attention of the dense file. logits: name of the softmax's input (or the Attention's
    query); shape: of the logits at the batch that was run."""

    node: int
    form: str
    logits: str
    shape: tuple[int, ...]
    axis: int

    @property
    def square(self) -> bool:
        return self.shape[-1] == self.shape[-2]


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
            found.append(Core(i, "op", node.input[0], shape, 3))
    softmaxes = (c for c in _softmaxes(file) if c.axis == len(c.shape) - 1 and c.axis > 1)
    found += [c for c in softmaxes if _weighs(file, file.nodes[c.node])]
    return sorted(found, key=lambda core: core.node)


def token_softmaxes(file: File, tokens: Tokens) -> list[Core]:
    """Every softmax over as many positions as there are tokens, attention or not."""
    sizes = (tokens.total, tokens.patches)
    return [c for c in _softmaxes(file) if c.shape[c.axis] in sizes]


def unknown_attentions(file: File, cores: Sequence[Core], tokens: Tokens) -> bool:
    """Tell whether all tokens have a softmax over something else than they are, such as keys and a
    sink column, that is none of `cores`."""
    mine = {c.node for c in cores}
    return any(
        c.node not in mine and len(c.shape) > 3 and c.shape[-2] == tokens.total
        for c in _softmaxes(file)
    )


def _softmaxes(file: File) -> list[Core]:
    found = []
    for i, node in enumerate(file.nodes):
        if node.op_type in ("Softmax", "LogSoftmax") and node.input[0] in file.values:
            shape = tuple(file.values[node.input[0]].shape)
            axis = int(attribute_of(node, "axis", -1)) % max(len(shape), 1)
            if shape:
                found.append(Core(i, "softmax", node.input[0], shape, axis))
    return found


def _weighs(file: File, softmax: onnx.NodeProto) -> bool:
    """Return whether the probabilities are the left operand of a product with live values."""
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
    products: set[int] = set()
    for core in cores:
        chances |= _chances(file, file.nodes[core.node])
        products |= _product(file, core.logits)
    found = []
    for i, node in enumerate(file.nodes):
        if (
            node.op_type != "MatMul"
            or i in products
            or not all(n in file.values for n in node.input)
        ):
            continue
        right = file.values[node.input[1]].shape
        if len(right) < 2 or right[-2] not in (tokens.total, tokens.patches):
            continue
        if node.input[0] not in chances and all(n in file.live for n in node.input):
            found.append(i)
    return found


#: Reductions that count what they go over, and ops in which a stored tensor may sum over tokens.
_COUNTING = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "Einsum")


def blind(file: File, cores: Sequence[Core], tokens: Tokens) -> bool:
    """Return whether masks alone do not say what the file computes with fewer tokens: it sums
    over them, outside attentions, or reads how many there are."""
    products = {i for core in cores for i in _product(file, core.logits)}
    for i, node in enumerate(file.nodes):
        if not file.live.intersection(node.input):
            continue
        counting = node.op_type in _COUNTING and node.input[0] in file.values
        if counting and (node.op_type == "Einsum" or pooled_axes(file, node, tokens) is not None):
            return True
        if node.op_type == "MatMul" and i not in products and set(node.input) - file.live:
            left = [file.values[n].shape for n in node.input[:1] if n in file.values]
            if left and left[0][-1] in (tokens.total, tokens.patches):
                return True
        if node.op_type == "Cast" and node.input[0] in file.values:
            read = file.values[node.input[0]]
            if read.dtype.kind in "iu" and np.isin(read, (tokens.total, tokens.patches)).any():
                return True
    return False


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
    # The norm of a row [B, N, C] reduces the last axis; so does a mean over [B, C, N].
    rows = rank == 3 and shape[1] in sizes
    return None if gone == (rank - 1,) and (rows or rank < 3) else gone


def _product(file: File, logits: str) -> set[int]:
    """The nearest products above the logits of an attention: Q·Kᵀ, which sums over features."""
    todo, seen, found = [logits], set(), set()
    while todo:
        i = file.maker.get(todo.pop())
        if i is None or i in seen:
            continue
        seen.add(i)
        if file.nodes[i].op_type == "MatMul":
            found.add(i)
        else:
            todo += [n for n in file.nodes[i].input if n in file.live]
    return found
