"""Let a graph follow the size of its image: shapes, bounds, pools, and tables along the grid.

One walk in the order of the nodes. What a node introduces (positions of a convolution) is computed;
what has a size by its axes is written where the node says it by number. At the end ONNX's own shape
inference has to find the sizes that the axes say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from math import ceil

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis import transfer as tf
from tcompile.analysis.axes import Axis
from tcompile.analysis.transfer_grid import pad_bounds
from tcompile.core.graph import attr, ints, is_const, is_free, shape, value
from tcompile.core.op_traits import BROADCASTS, PRODUCTS
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.resize.rotary import Rotary
from tcompile.passes.resize.rules import Array, Rules
from tcompile.passes.resize.sizes import GridError, Sizes, shown
from tcompile.passes.resize.tables import along, resized, shaped

#: Give positions of their own, as many as their attributes and their input say.
_WINDOWED = ("Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool")
#: Pick or write positions by number, or give as many as a number says.
_BY_NUMBER = ("GatherND", "ScatterND", "ScatterElements", "TopK", "Range", "NonZero", "OneHot")
_OWN_CHANNELS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")


class Follower:
    """The walk.

    Attributes:
        rules: of tables; None: they hold zeros, to see whether the graph can follow.
        told: what was said of tables, each once, with the first one it was said of.
    """

    def __init__(self, graph: gs.Graph, sizes: Sizes, rules: Rules | None) -> None:
        self.graph, self.sizes, self.rules = graph, sizes, rules
        self.b = Builder(graph)
        self.b.scope("resolution")
        self.told: dict[str, str] = {}
        self._rotary = None if rules is None else Rotary(graph, sizes.facts.unrotated, sizes, rules)
        self._made: dict[tuple[str, tuple[Axis | None, ...]], gs.Constant] = {}
        self._setters: Mapping[str, Callable[[gs.Node], None]] = {
            "Reshape": self._set_shape,
            "Expand": self._set_shape,
            "ConstantOfShape": self._set_shape,
            "Tile": self._set_repeats,
            "Slice": self._set_slice,
            "Split": self._set_split,
            "Gather": self._set_gather,
            "Resize": self._set_resize,
            "AveragePool": self._set_pool,
            "MaxPool": self._set_pool,
            "LpPool": self._set_pool,
        }

    def run(self) -> None:
        """Follow every node.

        Raises:
            GridError: a node cannot follow; it is named.
        """
        for number, node in enumerate(list(self.graph.nodes)):
            try:
                self._visit(node)
            except GridError as error:
                named = node.name in error.what
                what = error.what if named else f"{node.op} '{node.name}': {error.what}"
                raise GridError(what, hint=error.hint, reached=number) from error

    def _visit(self, node: gs.Node) -> None:
        moving = any(self.sizes.touched(t) for t in node.inputs if not is_const(t) and t.name)
        self._introduce(node, moving)
        if not moving and not any(self.sizes.touched(t) for t in node.outputs):
            return
        self._refuse(node)
        self._tables(node)
        if node.op in self._setters:
            self._setters[node.op](node)

    # ---- what a node introduces ------------------------------------------------------------------

    def _introduce(self, node: gs.Node, moving: bool) -> None:
        facts, sizes = self.sizes.facts, self.sizes
        if not moving:
            for out in node.outputs:
                for axis in facts.of(out):
                    for root in ax.roots(axis):
                        if root.kind != "untracked" and not root.pieces:
                            sizes.roots.setdefault(root, root.size)
            return
        out = node.outputs[0]
        if node.op in _WINDOWED or node.op == "Resize":
            dims = list(shape(out))
            dims[0] = sizes.dims(node.inputs[0])[0]
            where = self._resized(node) if node.op == "Resize" else self._windowed(node)
            dims[2 if node.op != "Resize" else 0 :] = where
            sizes.introduce(out, tuple(dims), node)
        elif node.op == "Slice":
            stepped = [(a, b) for a, b in (tf.slice_bounds(node) or {}).items() if b[2] != 1]
            for place, (start, stop, step) in stepped:
                old, now = (s[place] for s in (shape(node.inputs[0]), sizes.dims(node.inputs[0])))
                if (start, stop) != (start % step, old) or (now - old) % step:
                    raise GridError("steps over positions by number")
                dims = list(sizes.dims(out))
                dims[place] = len(range(start, now, step))
                sizes.introduce(out, tuple(dims), node)
        for tensor in node.outputs:
            if tensor.is_empty():
                continue
            known = tensor.name not in facts.opaque or node.op in _WINDOWED
            begun = [
                root
                for axis in facts.of(tensor)
                for root in ax.roots(axis)
                if root.kind == "data" and not root.pieces and root not in sizes.roots
            ]
            if not known or begun:
                why = facts.opaque.get(tensor.name, "gives positions of its own")
                raise GridError(f"{why}, and what is behind it needs the grid of the file")

    def _windowed(self, node: gs.Node) -> list[int]:
        """Positions of a convolution or a pool."""
        now = self.sizes.dims(node.inputs[0])[2:]
        old, many = shape(node.inputs[0])[2:], len(now)
        kernel = attr(node, "kernel_shape") or shape(node.inputs[1])[2:]
        strides, holes = (attr(node, n, [1] * many) for n in ("strides", "dilations"))
        pads, how = attr(node, "pads", [0] * 2 * many), attr(node, "auto_pad", "NOTSET")
        if node.op == "ConvTranspose" and ("output_shape" in node.attrs or how != "NOTSET"):
            raise GridError("gives an output of a fixed size")
        more, found = attr(node, "output_padding", [0] * many), []
        for i, n in enumerate(now):
            reach, around = holes[i] * (kernel[i] - 1) + 1, pads[i] + pads[many + i]
            if node.op == "ConvTranspose":
                found.append(strides[i] * (n - 1) + more[i] + reach - around)
            elif how.startswith("SAME"):
                found.append(ceil(n / strides[i]))
            elif node.op != "Conv" and kernel[i] == old[i] and shape(node.outputs[0])[2 + i] == 1:
                found.append(1)
            else:
                steps = Fraction(n + (around if how == "NOTSET" else 0) - reach, strides[i])
                found.append((ceil(steps) if attr(node, "ceil_mode", 0) else int(steps // 1)) + 1)
        if min(found) < 1:
            raise GridError(f"its window does not fit into {shown(now)} positions")
        return [int(n) for n in found]

    def _resized(self, node: gs.Node) -> list[int]:
        """Dims behind a Resize: by the same factors."""
        before, old = shape(node.inputs[0]), shape(node.outputs[0])
        found = []
        for n, was, out in zip(self.sizes.dims(node.inputs[0]), before, old, strict=True):
            exact = Fraction(n * out, was)
            if exact.denominator != 1:
                raise GridError(f"resizes {was} positions to {out}, which {n} do not fit")
            found.append(int(exact))
        return found

    # ---- what cannot follow ----------------------------------------------------------------------

    def _refuse(self, node: gs.Node) -> None:
        if node.op in _BY_NUMBER:
            raise GridError("picks positions by number, which are others on another grid")
        moved = [self.sizes.changes(a) for a in self.sizes.facts.of(node.inputs[0])]
        if node.op in _OWN_CHANNELS and moved[1]:
            raise GridError("has a weight for every position")
        if node.op.endswith("LayerNormalization") or node.op == "RMSNormalization":
            first = int(attr(node, "axis", -1)) % len(moved)
            if any(moved[first:]):
                raise GridError("has a weight for every position")
        if node.op == "Pad":
            bounds = pad_bounds(node)
            if bounds is None:
                raise GridError("its pads are computed")
        if node.op not in PRODUCTS and node.op != "Einsum":
            return
        pairs = tf.einsum_contracted(node)
        if node.op in PRODUCTS:
            pairs = [(i, a) for i, a in enumerate(tf.contracted(node))]
        for i, axis in pairs:
            tensor = node.inputs[i]
            along = self._met(tensor, None)[axis] if is_const(tensor) else None
            if along is not None and not _uniform(value(tensor), axis):
                raise GridError(
                    "its weights mix positions, one by one, and are not those of another grid"
                )

    # ---- tables ----------------------------------------------------------------------------------

    def _met(self, tensor: gs.Tensor, out: gs.Tensor | None) -> list[Axis | None]:
        """The axis that each dim of a stored tensor is joined with, where that one changes.

        Args:
            out: the result that it is broadcast into; None: it is not.
        """
        facts, found = self.sizes.facts, list[Axis | None]()
        given = None if out is None else facts.of(out)[-len(tensor.shape) :]
        for i, own in enumerate(facts.of(tensor)):
            joined = facts.met.get(own[0].root, ()) if own else ()
            known = sorted((a for a in joined if self.sizes.changes(a)), key=ax.show)
            if given is not None and len(given) == len(tensor.shape):
                own_size = int(tensor.shape[i])
                same = ax.size(given[i]) == own_size and self.sizes.changes(given[i])
                found.append(given[i] if same and own_size > 1 else None)
            elif len({self.sizes.of(a) for a in known}) > 1:
                raise GridError(f"'{tensor.name}' is read along several grids")
            else:
                found.append(known[0] if known else None)
        return found

    def _tables(self, node: gs.Node) -> None:
        """Store tables for the new grid in the place of those that the node reads."""
        broadcast = node.op in BROADCASTS
        for i, tensor in enumerate(node.inputs):
            if not is_const(tensor) or not tensor.shape:
                continue
            if node.op == "Attention" and i == 3:
                met = self._mask_of(node)
            else:
                met = self._met(tensor, node.outputs[0] if broadcast else None)
            if any(met):
                node.inputs[i] = self._table(tensor, met)

    def _mask_of(self, node: gs.Node) -> list[Axis | None]:
        """The axes of the mask of an Attention: queries, then keys."""
        q, k = (self.sizes.facts.of(t)[-2] for t in node.inputs[:2])
        mask = node.inputs[3]
        found: list[Axis | None] = [None] * (len(mask.shape) - 2)
        for size, axis in zip(mask.shape[-2:], (q, k), strict=True):
            found.append(axis if size > 1 and self.sizes.changes(axis) else None)
        return found

    def _table(self, tensor: gs.Tensor, met: list[Axis | None]) -> gs.Constant:
        key = (str(tensor.name), tuple(met))
        if key not in self._made:
            values = value(tensor)
            axes = [
                ax.new(f"kept/{i}", n, "untracked") if axis is None else axis
                for i, (n, axis) in enumerate(zip(values.shape, met, strict=True))
            ]
            try:
                made, words = self._resampled(tensor, values, axes)
            except GridError as error:
                raise GridError(f"'{tensor.name}': {error.what}") from error
            if words:
                dims = f"{shown(values.shape)} → {shown(made.shape)}"
                self.told.setdefault(words, f"'{tensor.name}' {dims}")
            name = self.b.name(f"table/{tensor.name}")
            self._made[key] = gs.Constant(name, np.ascontiguousarray(made))
        return self._made[key]

    def _resampled(self, tensor: gs.Tensor, values: Array, axes: list[Axis]) -> tuple[Array, str]:
        if self.rules is None:
            return resized(values, axes, self.sizes, shaped)
        if self._rotary is not None and (found := self._rotary.resized(tensor, axes)):
            return found
        return resized(values, axes, self.sizes, partial(along, rules=self.rules))

    # ---- what nodes say by number ----------------------------------------------------------------

    def _set_shape(self, node: gs.Node) -> None:
        place = 0 if node.op == "ConstantOfShape" else 1
        target, out = node.inputs[place], node.outputs[0]
        old, now = shape(out), self.sizes.dims(out)
        if is_const(target):
            dims = [s if is_free(n) else n for s, n in zip(ints(target), now, strict=True)]
            node.attrs.pop("allowzero", None)
            node.inputs[place] = self.b.const(dims)
            return
        node.inputs[place] = self._computed(target, old, now)

    def _computed(self, target: gs.Tensor, old: tuple[int, ...], now: tuple[int, ...]) -> gs.Tensor:
        """Dims that are computed from the batch, with those of the grid as they are now."""
        parts: list[gs.Tensor] = []
        for i, (was, n) in enumerate(zip(old, now, strict=True)):
            if not is_free(n):
                parts.append(self.b.const([n]))
                continue
            part, ratio = self.b.slice(target, 0, i, i + 1, fp32=False), Fraction(n, was)
            for op, factor in (("Mul", ratio.numerator), ("Div", ratio.denominator)):
                if factor != 1:
                    part = self.b.op(op, part, [factor], dtype=np.int64, fp32=False)
            parts.append(part)
        made: gs.Tensor = self.b.op("Concat", *parts, dtype=np.int64, axis=0, fp32=False)
        return made

    def _set_repeats(self, node: gs.Node) -> None:
        before, after = self.sizes.dims(node.inputs[0]), self.sizes.dims(node.outputs[0])
        if is_const(node.inputs[1]) and not any(map(is_free, after)):
            node.inputs[1] = self.b.const([m // n for n, m in zip(before, after, strict=True)])
        elif any(
            Fraction(m, n) != Fraction(y, x)
            for n, m, x, y in zip(
                before, after, shape(node.inputs[0]), shape(node.outputs[0]), strict=True
            )
        ):
            raise GridError("repeats positions as often as is computed")

    def _at(self, axis: Axis, place: int) -> int:
        """A bound of an axis now: between its parts, or within one that stays."""
        before, now = 0, 0
        for part in ax.pieces(axis):
            size = self.sizes.of_interval(part)
            if place == before:
                return now
            if place < before + part.size:
                if size != part.size:
                    raise GridError(f"cuts {ax.show(axis)} at {place} by number")
                return now + place - before
            before, now = before + part.size, now + size
        return now

    def _set_slice(self, node: gs.Node) -> None:
        bounds, axes = tf.slice_bounds(node), self.sizes.facts.of(node.inputs[0])
        if bounds is None:
            raise GridError("its bounds are computed")
        starts, ends, steps = list[int](), list[int](), list[int]()
        for axis, (start, stop, step) in bounds.items():
            moved = self.sizes.changes(axes[axis])
            if moved and step != 1:
                stop = self.sizes.of(axes[axis])
            elif moved:
                start = self._at(axes[axis], start)
                stop = self._at(axes[axis], stop)
            # Backwards to the first position and with it: no number says that but a large one.
            ends.append(stop if stop >= 0 else np.iinfo(np.int64).min + 1)
            starts, steps = [*starts, start], [*steps, step]
        given = [starts, ends, list(bounds), steps]
        node.inputs = [node.inputs[0], *map(self.b.const, given)]

    def _set_split(self, node: gs.Node) -> None:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        parts = self.b.const([self.sizes.dims(t)[axis] for t in node.outputs])
        node.attrs.pop("num_outputs", None)
        node.inputs = [node.inputs[0], parts]

    def _set_gather(self, node: gs.Node) -> None:
        axis = int(attr(node, "axis", 0)) % len(node.inputs[0].shape)
        along = self.sizes.facts.of(node.inputs[0])[axis]
        if not self.sizes.changes(along):
            return
        if not is_const(node.inputs[1]):
            raise GridError("picks positions by computed numbers")
        index = value(node.inputs[1]).astype(np.int64) % ax.size(along)
        run = tf.gather_run(node) if index.ndim == 1 else None
        if run is not None:
            places = np.arange(self._at(along, run[0]), self._at(along, run[1]))
        else:
            # A position that is the first of many would be another one on a smaller grid.
            moved = [self._picked(along, int(i)) for i in index.reshape(-1)]
            places = np.reshape(moved, index.shape)
        node.inputs[1] = self.b.const(places)

    def _picked(self, axis: Axis, place: int) -> int:
        start = self._at(axis, place)
        if self._at(axis, place + 1) != start + 1:
            raise GridError(f"picks position {place} of {ax.show(axis)} by number")
        return start

    def _set_resize(self, node: gs.Node) -> None:
        given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        if not given:
            return
        old, now = shape(node.outputs[0]), self.sizes.dims(node.outputs[0])
        axes = attr(node, "axes", range(len(now)))
        if not is_const(node.inputs[3]):
            some = [tuple(dims[a] for a in axes) for dims in (old, now)]
            node.inputs[3] = self._computed(node.inputs[3], some[0], some[1])
            return
        node.inputs[3] = self.b.const(
            [
                old if is_free(now[a]) else now[a]
                for a, old in zip(axes, ints(node.inputs[3]), strict=True)
            ]
        )

    def _set_pool(self, node: gs.Node) -> None:
        """Let a pool of the whole grid be one of the whole grid."""
        old, now = shape(node.inputs[0])[2:], self.sizes.dims(node.inputs[0])[2:]
        out = shape(node.outputs[0])[2:]
        kernel = list(attr(node, "kernel_shape"))
        whole = [k == n and o == 1 for k, n, o in zip(kernel, old, out, strict=True)]
        node.attrs["kernel_shape"] = [
            n if w else k for w, n, k in zip(whole, now, kernel, strict=True)
        ]


def check_sizes(graph: gs.Graph, sizes: Sizes, names: set[str]) -> None:
    """Hold the sizes by axes against those that ONNX infers.

    Args:
        names: the tensors that the graph had before.

    Raises:
        GridError: they differ, at the node that is named.
    """
    for node in graph.nodes:
        for out in node.outputs:
            if out.is_empty() or out.name not in names or out.shape is None:
                continue
            found, wanted = shape(out), sizes.dims(out)
            if found != wanted:
                raise GridError(
                    f"{node.op} '{node.name}' gives {shown(found)} where the grid needs "
                    f"{shown(wanted)}"
                )


def _uniform(values: Array, axis: int) -> bool:
    return bool((values == values.take([0], axis)).all())
