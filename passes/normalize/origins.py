"""Stored numbers that were computed from the size of an axis, and of which axis.

`Shape(x)[1]` of a token axis is stored as a number like any other, and so is all that the file
computes from it. What follows from the number of tokens has to be known when tokens leave, so each
number remembers the axes that it came from, element by element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.facts import Origin
from tcompile.core.graph import attr, is_const, producer, value

_Origins = npt.NDArray[np.object_]

#: Tensors of more elements are tables, not sizes.
_LARGEST = 1024
_NONE: Origin = frozenset()
#: Ops that give what their first input holds in other shapes.
_SHAPED = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand")


class Origins:
    """Grows while a graph is folded.

    Attributes:
        of: stored tensor → the origins of each of its elements.
        filled: those of which only the length came from a size, not what they hold, such as ones
            for each token. What is summed of them is a size again.
    """

    def __init__(self) -> None:
        self.of: dict[str, _Origins] = {}
        self.filled: set[str] = set()

    def measured(self, node: gs.Node) -> None:
        """A Shape or Size that is about to be stored."""
        source, out = node.inputs[0], str(node.outputs[0].name)
        each = [frozenset({(str(source.name), i, int(d))}) for i, d in enumerate(source.shape)]
        if node.op == "Shape":
            each = each[attr(node, "start", 0) : attr(node, "end")]
            self.of[out] = _array(each, (len(each),))
        else:
            self.of[out] = _array([_NONE.union(*each)], ())

    def same(self, tensor: gs.Tensor, other: gs.Tensor) -> None:
        """Another tensor takes the place of one; it may have that of others already."""
        mine, known = self.of.get(tensor.name), self.of.get(other.name)
        if mine is not None:
            if tensor.name not in self.filled:
                self.filled.discard(str(other.name))
            elif known is None:
                self.filled.add(str(other.name))
            both = (
                mine
                if known is None or known.shape != mine.shape
                else (np.frompyfunc(frozenset.union, 2, 1)(mine, known))
            )
            self.of[str(other.name)] = _as_array(both)

    def follow(self, node: gs.Node) -> None:
        """A node that is about to be evaluated."""
        if not any(t.name in self.of for t in node.inputs):
            return
        shaped = node.op in _SHAPED and node.inputs[0].name in self.filled
        if shaped or node.op == "ConstantOfShape":
            self.filled.add(str(node.outputs[0].name))
        try:
            found = self._moved(node)
        except (ValueError, IndexError, TypeError):
            found = None  # not a plain view: every element may come from all
        for i, out in enumerate(node.outputs):
            known = None if out.shape is None else tuple(int(d) for d in out.shape)
            dims = known or ()
            if int(np.prod(dims)) > _LARGEST:
                continue
            fits = found is not None and i == 0 and known in (None, found.shape)
            mine = found if fits else None
            if mine is None:
                every = [o for t in node.inputs for o in self._given(t).reshape(-1)]
                mine = _array([_NONE.union(*every)] * int(np.prod(dims)), dims)
            if any(mine.reshape(-1)):
                self.of[str(out.name)] = mine

    def summary(self) -> dict[str, Origin]:
        """Return, of each stored tensor, what any of its elements came from."""
        return {
            name: _NONE.union(*each.reshape(-1))
            for name, each in self.of.items()
            if name not in self.filled
        }

    def _given(self, tensor: gs.Tensor) -> _Origins:
        known = self.of.get(tensor.name)
        if known is not None:
            return known
        dims = tuple(int(d) for d in tensor.shape or ())
        size = int(np.prod(dims))
        return _array([_NONE] * size, dims) if size <= _LARGEST else _array([_NONE], ())

    def _moved(self, node: gs.Node) -> _Origins | None:
        """The origins of what only moves elements, or treats each by itself."""
        first = self._given(node.inputs[0])
        if node.op in ("Cast", "Identity", "Sqrt", "Neg", "Reciprocal", "Log", "Floor", "Ceil"):
            return first
        given = [_stored(t) for t in node.inputs[1:]]
        if node.op == "Gather" and given[0] is not None:
            return _as_array(first.take(given[0], axis=int(attr(node, "axis", 0))))
        if node.op == "Slice" and first.ndim == 1:
            start, stop, *rest = given
            step = rest[1] if len(rest) > 1 else np.ones(1, np.int64)
            if start is None or stop is None or step is None:
                return None
            return first[slice(*(int(v.reshape(-1)[0]) for v in (start, stop, step)))]
        if node.op == "Squeeze":
            return _as_array(first.reshape(-1)[0]) if first.size == 1 else None
        if node.op == "Unsqueeze":
            return first.reshape(-1) if first.size == 1 else None
        if node.op == "Concat":
            parts = [self._given(t) for t in node.inputs]
            return np.concatenate(parts, axis=int(attr(node, "axis", 0)))
        if node.op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Mod"):
            found: Any = first
            for other in node.inputs[1:]:
                found = np.frompyfunc(frozenset.union, 2, 1)(found, self._given(other))
            return _as_array(found)
        return None


def _stored(tensor: gs.Tensor) -> npt.NDArray[Any] | None:
    """The value of a constant, which the first round still has as a node; None: not known yet."""
    if is_const(tensor):
        return value(tensor)
    maker = producer(tensor)
    if maker is None or maker.op != "Constant" or "value" not in maker.attrs:
        return None
    return np.asarray(maker.attrs["value"].values)


def _array(elements: list[Any], dims: tuple[int, ...]) -> _Origins:
    made = np.empty(len(elements), object)
    made[:] = elements
    return made.reshape(dims)


def _as_array(found: Any) -> _Origins:
    if isinstance(found, np.ndarray):
        return found
    return _array([found], ())
