"""The ends of a model on another grid: the image as it was, and outputs as they were.

Both are resampled by products with stored matrices, one for the rows and one for the columns: exact
antialiasing for every runtime and opset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis
from tcompile.core.graph import int_to_dim, is_free, replace_uses
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.resize.image import ImageGrid, Pair, is_float
from tcompile.passes.resize.rules import IMAGE_RULE, matrix
from tcompile.passes.resize.sizes import GridError, Sizes


def keep_image(graph: gs.Graph, image: ImageGrid, size: Pair) -> Builder:
    """Let the graph take the image in its old size: it is resampled first."""
    b = Builder(graph)
    b.scope("resolution/image")
    tensor = next(t for t in graph.inputs if t.name == image.name)
    readers = list(tensor.outputs)
    tensor.shape = with_sizes(tensor.shape, image.dims, image.size)
    now: gs.Tensor = tensor if is_float(tensor) else b.cast(tensor, np.float32)
    now.shape = list(tensor.shape)
    for dim, old, new in zip(image.dims, image.size, size, strict=True):
        now = resampled(b, now, dim, old, new)
    if not is_float(tensor):
        kind = np.iinfo(np.dtype(tensor.dtype))
        bounds = [b.const(v, np.float32) for v in (kind.min, kind.max)]
        now = b.op("Clip", b.op("Round", now), *bounds)
        now = b.cast(now, tensor.dtype)
    now.shape = with_sizes(tensor.shape, image.dims, size)
    replace_uses(tensor, now, readers)
    return b


def with_sizes(dims: Sequence[int | str], places: Pair, sizes: Pair) -> list[int | str]:
    """Dims with other sizes at two places."""
    found = list(dims)
    for place, size in zip(places, sizes, strict=True):
        found[place] = size
    return found


def resampled(b: Builder, x: gs.Tensor, dim: int, old: int, new: int) -> gs.Tensor:
    """A tensor with another number of positions along a dim."""
    if old == new:
        return x
    rank, dtype = len(x.shape), np.dtype(x.dtype)
    weights = matrix(old, new, IMAGE_RULE)
    dims = list(x.shape)
    if dim == rank - 2:
        made = b.op("MatMul", b.const(weights, dtype), x, dtype=dtype, fp32=False)
    elif dim == rank - 1:
        made = b.op("MatMul", x, b.const(weights.T, dtype), dtype=dtype, fp32=False)
    else:
        perm = [i for i in range(rank) if i != dim] + [dim]
        turned = b.transpose(x, perm, fp32=False)
        made = b.op("MatMul", turned, b.const(weights.T, dtype), dtype=dtype, fp32=False)
        made = b.transpose(made, list(np.argsort(perm)), fp32=False)
    dims[dim] = new
    made.shape = dims
    return made


def restore_outputs(graph: gs.Graph, sizes: Sizes) -> Builder:
    """Give outputs with positions the grid that they had: interpolated.

    Raises:
        GridError: an output of whole numbers, or over two grids.
    """
    b = Builder(graph)
    for place, out in enumerate(graph.outputs):
        axes = sizes.facts.axes[out.name]
        if not any(map(sizes.changes, axes)):
            continue
        b.scope(f"resolution/output/{out.name}")
        if not is_float(out):
            raise GridError(
                f"output '{out.name}' gives whole numbers for positions: they cannot be "
                "interpolated to the old grid"
            )
        inner = gs.Variable(b.name("inner"), out.dtype, out.shape)
        (maker,) = out.inputs
        maker.outputs[[t is out for t in maker.outputs].index(True)] = inner
        replace_uses(out, inner)
        found = _restored(b, inner, axes, sizes)
        found = b.op("Identity", found, dtype=out.dtype, fp32=False)
        last = found.inputs[0]
        last.outputs[0] = out
        out.shape = [int_to_dim(ax.size(a)) for a in axes]
        graph.outputs[place] = out
    return b


def _restored(b: Builder, x: gs.Tensor, axes: Sequence[Axis], sizes: Sizes) -> gs.Tensor:
    for place, axis in enumerate(axes):
        parts = ax.pieces(axis)
        if not sizes.changes(axis) or len(parts) == 1:
            continue
        found, start = [], 0
        for part in parts:
            inner = ax.sliced(part.axis, part.start, part.stop)
            now = sizes.of(inner)
            own = b.slice(x, place, start, start + now, fp32=False)
            own.shape = [now if i == place else d for i, d in enumerate(x.shape)]
            start += now
            found.append(_restored(b, own, [*axes[:place], inner, *axes[place + 1 :]], sizes))
        joined = b.concat(found, place, fp32=False)
        joined.shape = _sizes_of(axes)
        return joined
    return _by_digit(b, x, axes, sizes)


def _sizes_of(axes: Sequence[Axis]) -> list[int | str]:
    return [int_to_dim(ax.size(a)) for a in axes]


def _by_digit(b: Builder, x: gs.Tensor, axes: Sequence[Axis], sizes: Sizes) -> gs.Tensor:
    moving = [d for axis in axes for d in axis if sizes.of_digit(d) != d.size]
    if not moving:
        return x
    if len({d.root for d in moving}) < len(moving):
        raise GridError("an output has pairs of positions, which cannot be interpolated")
    # Dims that stay are one digit each.
    split = [list(a) if sizes.changes(a) else [None] for a in axes]
    now: list[int] = []
    for axis, digits in zip(axes, split, strict=True):
        now += [ax.size(axis) if d is None else sizes.of_digit(d) for d in digits]
    free = [n for n in now if is_free(n)]
    if len(free) > 1:
        raise GridError("an output has a free batch in several dims")
    flat = [d for digits in split for d in digits]
    if len(flat) > len(axes):
        x = b.reshape(x, [-1 if is_free(n) else n for n in now], fp32=False)
        x.shape = [int_to_dim(n) for n in now]
    for i, digit in enumerate(flat):
        if digit is not None:
            x = resampled(b, x, i, now[i], digit.size)
    if len(flat) > len(axes):
        whole = [ax.size(a) for a in axes]
        x = b.reshape(x, [-1 if is_free(n) else n for n in whole], fp32=False)
        x.shape = [int_to_dim(n) for n in whole]
    return x


def carrying(graph: gs.Graph, sizes: Sizes) -> list[str]:
    """The outputs that have positions of the grid."""
    return [str(t.name) for t in graph.outputs if any(map(sizes.changes, sizes.facts.axes[t.name]))]
