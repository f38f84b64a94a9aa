"""Which stored numbers were computed from the size of which axis.

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
from tcompile.ir import attr, axes_argument, ints, is_const, value

_Origins = npt.NDArray[np.object_]

#: Tensors of more elements are tables, not sizes.
_LARGEST = 1024
_NONE: Origin = frozenset()


class Origins:
    """Grows while a graph is folded.

    Attributes:
        of: stored tensor → the origins of each of its elements.
    """

    def __init__(self) -> None:
        self.of: dict[str, _Origins] = {}

    def measured(self, node: gs.Node) -> None:
        """A Shape or Size that is about to be stored."""
        source, out = node.inputs[0], str(node.outputs[0].name)
        each = [frozenset({(str(source.name), i, int(d))}) for i, d in enumerate(source.shape)]
        if node.op == "Shape":
            each = each[attr(node, "start", 0) : attr(node, "end")]
            self.of[out] = _array(each, (len(each),))
        else:
            self.of[out] = _array([_NONE.union(*each)], ())

    def follow(self, node: gs.Node) -> None:
        """A node that is about to be evaluated."""
        if not any(t.name in self.of for t in node.inputs):
            return
        try:
            found = self._moved(node)
        except (ValueError, IndexError, TypeError):
            found = None  # not a plain view: every element may come from all
        for i, out in enumerate(node.outputs):
            dims = tuple(int(d) for d in out.shape or ()) if out.shape is not None else ()
            if int(np.prod(dims)) > _LARGEST:
                continue
            mine = found if found is not None and i == 0 and found.shape == dims else None
            if mine is None:
                every = [o for t in node.inputs for o in self._given(t).reshape(-1)]
                mine = _array([_NONE.union(*every)] * int(np.prod(dims)), dims)
            if any(mine.reshape(-1)):
                self.of[str(out.name)] = mine

    def summary(self) -> dict[str, Origin]:
        """Of each stored tensor, what any of its elements came from."""
        return {name: _NONE.union(*each.reshape(-1)) for name, each in self.of.items()}

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
        if node.op == "Gather" and is_const(node.inputs[1]):
            axis = int(attr(node, "axis", 0))
            return _as_array(first.take(value(node.inputs[1]), axis=axis))
        if node.op == "Slice" and all(is_const(t) for t in node.inputs[1:4]) and first.ndim == 1:
            return first[ints(node.inputs[1])[0] : ints(node.inputs[2])[0]]
        if node.op == "Squeeze":
            axes = axes_argument(node)
            return _as_array(np.squeeze(first, None if axes is None else tuple(axes)))
        if node.op == "Unsqueeze":
            return _as_array(np.expand_dims(first, tuple(axes_argument(node) or ())))
        if node.op == "Concat":
            parts = [self._given(t) for t in node.inputs]
            return np.concatenate(parts, axis=int(attr(node, "axis", 0)))
        if node.op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Mod"):
            found: Any = first
            for other in node.inputs[1:]:
                found = np.frompyfunc(frozenset.union, 2, 1)(found, self._given(other))
            return _as_array(found)
        return None


def _array(elements: list[Any], dims: tuple[int, ...]) -> _Origins:
    made = np.empty(len(elements), object)
    made[:] = elements
    return made.reshape(dims)


def _as_array(found: Any) -> _Origins:
    if isinstance(found, np.ndarray):
        return found
    return _array([found], ())
