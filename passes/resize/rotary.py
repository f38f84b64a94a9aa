"""Rotary tables for another grid, by the rule that the table in the file shows.

A table of cosines and one of sines are the real and imaginary parts of turns e^{iθ}. In every known
model θ is linear in the row and the column: θ = a + b·row + c·column in each channel, so that a and
the two speeds follow from the table. What a row of a smaller grid stands for is one of four rules:

index    row i is row i: the angles of the first rows (Qwen-VL, Pixtral, mixed RoPE of timm)
scaled   row i stands at i·h/h' (EVA-02, which counts in rows of its pre-training)
centred  the middle of row i between the edges, from −1 to 1 (DINOv3)
corners  the first row at −1, the last at 1 (timm's pixel grid)

Angles that are 0 at the first row, or at one before it (models that count from 1), are by index
where the fastest channel turns by 1 a row, else scaled; those that are 0 in the middle are centred,
or corners where that gives whole half-turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.axes import Axis
from tcompile.core.graph import is_const, value
from tcompile.passes.resize.rules import Array, Rules
from tcompile.passes.resize.sizes import Sizes
from tcompile.passes.resize.tables import Chain, along, resized

Turns: TypeAlias = npt.NDArray[np.complex128]
#: The largest difference from a table that is still that table; half precision has this.
_CLOSE = 2e-3

#: Rule → the place in the old grid that each position of a new one stands for: (old, new, the
#: number of the first row).
PLACES: Mapping[str, Callable[[int, int, int], Array]] = {
    "index": lambda old, new, first: np.arange(new, dtype=float),
    "scaled": lambda old, new, first: (np.arange(new) + first) * (old / new) - first,
    "centred": lambda old, new, first: (np.arange(new) + 0.5) * (old / new) - 0.5,
    "corners": lambda old, new, first: np.arange(new) * ((old - 1) / max(new - 1, 1)),
}


class Rotary:
    """The rotary tables of a graph.

    Args:
        graph: as it was.
        unrotated: table → 1.0 for one of cosines, 0.0 for one of sines.
    """

    def __init__(
        self, graph: gs.Graph, unrotated: Mapping[str, float], sizes: Sizes, rules: Rules
    ) -> None:
        self.sizes, self.rules = sizes, rules
        tensors = graph.tensors()
        self._parts = {
            name: value(tensors[name])
            for name in unrotated
            if name in tensors and is_const(tensors[name])
        }
        self._cosine = {name: unrotated[name] == 1.0 for name in self._parts}

    def resized(self, tensor: gs.Tensor, axes: Sequence[Axis]) -> tuple[Array, str] | None:
        """A table for the new grid, and by which rule; None for other tables."""
        mine = self._parts.get(str(tensor.name))
        other = None if mine is None else self._partner(str(tensor.name), mine)
        if mine is None or other is None:
            return None
        cosine = self._cosine[str(tensor.name)]
        turns = mine + 1j * other if cosine else other + 1j * mine
        found, words = resized(turns.astype(np.complex128), axes, self.sizes, self._turned)
        part = found.real if cosine else found.imag
        return part.astype(mine.dtype), words

    def _partner(self, name: str, mine: Array) -> Array | None:
        for other, values in self._parts.items():
            if self._cosine[other] != self._cosine[name] and values.shape == mine.shape:
                whole = mine.astype(float) ** 2 + values.astype(float) ** 2
                if np.allclose(whole, 1.0, atol=_CLOSE):
                    return values
        return None

    def _turned(self, grids: Any, first: int, chains: Sequence[Chain]) -> tuple[Any, str]:
        """The turns at the places of another grid."""
        old = grids.shape[first:]
        turns = grids.reshape(-1, *old)
        start, speeds = _linear(turns)
        if np.abs(_at(start, speeds, [np.arange(n) for n in old]) - turns).max() > _CLOSE:
            parts = (along(p, first, chains, self.rules)[0] for p in (grids.real, grids.imag))
            cos, sin = parts
            length = np.maximum(np.sqrt(cos**2 + sin**2), 1e-6)
            return (cos + 1j * sin) / length, "rotary table interpolated: it is of no known rule"
        rule = self.rules.rotary
        words = f"rotary table by the rule {rule}"
        if rule is None:
            rule, speeds = _rule(start, speeds, old)
            words = f"rotary table by the rule {rule}, which it shows"
        else:
            speeds = _centred(start, speeds, old)[1]
        number = int(_counts_from(start, speeds) or 0)
        places = [PLACES[rule](n, c.new, number) for n, c in zip(old, chains, strict=True)]
        found = _at(start, speeds, places)
        return found.reshape(*grids.shape[:first], *found.shape[1:]), words


def _linear(turns: Turns) -> tuple[Turns, Array]:
    """(turn at the first position, angle a step along each axis) of each channel."""
    speeds = []
    for axis in range(1, turns.ndim):
        ahead, behind = (turns.swapaxes(1, axis)[:, s] for s in (slice(1, None), slice(-1)))
        step = (ahead * behind.conj()).reshape(len(turns), -1).mean(1)
        speeds.append(np.angle(step) if ahead.size else np.zeros(len(turns)))
    found = np.stack(speeds, 1)
    # All positions turned back to the first one, whose mean has the least error.
    back = turns * _at(
        np.ones(len(turns), complex), -found, [np.arange(n) for n in turns.shape[1:]]
    )
    return back.reshape(len(turns), -1).mean(1), found


def _at(start: Turns, speeds: Array, places: Sequence[Array]) -> Turns:
    angle: Any = np.zeros(())
    for axis, at in enumerate(places):
        shape = [1] * len(places)
        shape[axis] = -1
        many = [-1] + [1] * len(places)
        angle = angle + speeds[:, axis].reshape(many) * at.reshape([1, *shape])
    return start.reshape([-1] + [1] * len(places)) * np.exp(1j * angle)  # type: ignore[no-any-return]


def _centred(start: Turns, speeds: Array, old: Sequence[int]) -> tuple[bool, Array]:
    """Whether the angles are 0 in the middle of the grid, and the speeds that make them so: a turn
    of more than half a step may have been taken for one backwards."""
    middle = np.array([(n - 1) / 2 for n in old])
    moves = np.abs(speeds).argmax(1)
    others = speeds.copy()
    rows = np.arange(len(speeds))
    fast = speeds[rows, moves]
    others[rows, moves] = fast - 2 * np.pi * np.where(fast < 0, -1.0, 1.0)
    off = [np.abs(start * np.exp(1j * (s @ middle)) - 1) for s in (speeds, others)]
    back = off[1] < off[0] - _CLOSE
    found = np.where(back[:, None], others, speeds)
    centred = bool((np.minimum(*off) < _CLOSE).all())
    return centred, found if centred else speeds


def _counts_from(start: Turns, speeds: Array) -> int | None:
    """The number of the first row and column, at whose 0 the angles are 0; None: neither 0 nor
    1."""
    for number in (0, 1):
        angle = speeds.sum(1) * number
        if (np.abs(start - np.exp(1j * angle)) < _CLOSE).all():
            return number
    return None


def _rule(start: Turns, speeds: Array, old: Sequence[int]) -> tuple[str, Array]:
    """The rule that a table shows, and its speeds."""
    mixed = bool((np.sort(np.abs(speeds), 1)[:, :-1] > _CLOSE).any())
    if _counts_from(start, speeds) is not None:
        # Some models give the fastest channel to rows, and the next one to columns.
        by_index = mixed or bool(abs(np.abs(speeds).max() - 1) < _CLOSE)
        return ("index" if by_index else "scaled"), speeds
    centred, speeds = _centred(start, speeds, old)
    if not centred:
        return "index", speeds
    fastest = np.abs(speeds).max(0)
    edges, corners = (_half_turns(fastest, [n - less for n in old]) for less in (0, 1))
    return ("corners" if corners and not edges else "centred"), speeds


def _half_turns(speeds: Array, steps: Sequence[int]) -> bool:
    """Return whether half the grid is a whole number of half-turns."""
    turns = speeds * np.array(steps) / 2 / np.pi
    return bool((np.abs(turns - np.round(turns)) < _CLOSE).all())
