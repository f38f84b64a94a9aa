"""Resize: the same model for a smaller image, so that it has fewer patches from the start.

Nothing is added at run time but the resampling of the image. Position tables are interpolated,
rotary tables computed by the model's own rule, shapes follow by the axes that the analysis knows;
what cannot follow is refused by its node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from tcompile.analysis.axes import Digit
from tcompile.analysis.count_state import Counts
from tcompile.analysis.counts import find_counts
from tcompile.analysis.model import analyse
from tcompile.core.copies import copied
from tcompile.core.graph import int_to_dim, shape
from tcompile.passes.normalize.infer import check as check_graph
from tcompile.passes.normalize.infer import infer
from tcompile.passes.resize.counted import follow_counts
from tcompile.passes.resize.ends import carrying, keep_image, restore_outputs, with_sizes
from tcompile.passes.resize.follow import Follower, check_sizes
from tcompile.passes.resize.image import ImageGrid, Pair, image_grid, patch_axis
from tcompile.passes.resize.rules import DEFAULT_RULE, RULES, Rules
from tcompile.passes.resize.sizes import GridError, Sizes
from tcompile.passes.stages import Analysed

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "GridError",
    "ImageGrid",
    "OnGrid",
    "Rules",
    "finish",
    "grids",
    "image_grid",
    "on_grid",
]


@dataclass(frozen=True)
class OnGrid:
    """A model on another grid.

    Attributes:
        model: it, analysed anew; its input has the new size, and so have its outputs.
        image: the image as it was.
        size: of the image now.
        sizes: of every axis of the model as it was.
        tables: how its tables were made, each way with the first table.
        outputs: those that have positions of the grid.
        written: nodes and tensors that were written for it.
    """

    model: Analysed
    image: ImageGrid
    size: Pair
    sizes: Sizes
    tables: tuple[str, ...]
    outputs: tuple[str, ...]
    written: Mapping[str, str]


def on_grid(model: Analysed, grid: Pair, rules: Rules | None = None) -> OnGrid:
    """The model with so many rows and columns of patches.

    Raises:
        GridError: the model cannot be had on this grid; the node that stands against it is named.
    """
    names = {str(t.name) for n in model.graph.nodes for t in n.outputs}
    graph, image, walk = _followed(model, grid, rules or Rules(), _counts(model))
    sizes = walk.sizes
    _infer(graph)
    check_sizes(graph, sizes, names)
    normal = replace(model.normalized, graph=graph)
    analysis = analyse(graph, prefix=model.prefix, tower=_tower(model), sized=normal.sized)
    mine, its = analysis.shape, model.analysis.shape
    if (mine.blocks, mine.prefix, analysis.space.grid[-2:]) != (its.blocks, its.prefix, grid):
        raise GridError(
            f"has {mine.blocks} blocks over {analysis.space.grid} patches behind {mine.prefix} "
            f"fixed tokens once it is resized, not {its.blocks} over {grid} behind {its.prefix}"
        )
    tables = tuple(f"{words}: {first}" for words, first in walk.told.items())
    outputs = tuple(carrying(graph, sizes))
    now = replace(model, normalized=normal, analysis=analysis)
    return OnGrid(now, image, image.size_for(grid), sizes, tables, outputs, dict(walk.b.written))


def _followed(
    model: Analysed, grid: Pair, rules: Rules | None, counts: Counts
) -> tuple[gs.Graph, ImageGrid, Follower]:
    """A copy of the graph in which all that is said by number, and every table, follows the grid;
    shapes of tensors are as they were."""
    image = image_grid(model.graph, model.analysis)
    size = image.size_for(grid)
    sizes = _sizes(model, image, size)
    graph = copied(model.graph)
    tensor = next(t for t in graph.inputs if t.name == image.name)
    tensor.shape = with_sizes(tensor.shape, image.dims, size)
    walk = Follower(graph, sizes, rules)
    walk.run()
    _check_patches(model, grid, sizes)
    patches = sizes.of(patch_axis(model.analysis))
    follow_counts(graph, walk.b, counts, model.analysis.space, patches)
    return graph, image, walk


def _counts(model: Analysed) -> Counts:
    return find_counts(model.graph, model.analysis.facts, model.analysis.space)


def _tower(model: Analysed) -> str | None:
    return model.analysis.tower if model.analysis.others or model.analysis.chosen else None


def _sizes(model: Analysed, image: ImageGrid, size: Pair) -> Sizes:
    sizes = Sizes(model.analysis.facts, patch_axis(model.analysis))
    for tensor in model.graph.inputs:
        for axis in model.analysis.facts.axes[tensor.name]:
            for digit in axis:
                sizes.roots.setdefault(digit.root, digit.root.size)
    for root, n in zip(image.roots, size, strict=True):
        sizes.roots[root] = n
    for tensor in model.graph.inputs:
        if tensor.name != image.name and sizes.touched(tensor):
            raise GridError(
                f"its input '{tensor.name}' {list(tensor.shape)} has positions of the image too"
            )
    return sizes


def _check_patches(model: Analysed, grid: Pair, sizes: Sizes) -> None:
    digits: tuple[Digit, ...] = patch_axis(model.analysis)[-2:]
    found = tuple(map(sizes.of_digit, digits))
    if found != grid:
        raise GridError(f"an image of that size has {found[0]} × {found[1]} patches")


def _infer(graph: gs.Graph) -> None:
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    for tensor in graph.inputs:
        tensor.shape = list(shape(tensor))
    infer(graph, symbolic=True)
    for tensor in graph.inputs:
        tensor.shape = [int_to_dim(d) for d in tensor.shape]
    check_graph(graph)


def finish(graph: gs.Graph, found: OnGrid, *, host: bool) -> dict[str, str]:
    """Give the graph the image in its old size, unless the host resizes it, and its outputs the
    grid that they had.

    Args:
        graph: of `found.model`, changed in place; its outputs have the axes that they had there.

    Returns:
        The nodes and tensors that were written for it, and for the tables: each for no site.

    Raises:
        GridError: an output cannot be interpolated.
    """
    written = {**found.written, **restore_outputs(graph, found.sizes).written}
    if not host:
        written |= keep_image(graph, found.image, found.size).written
    _infer(graph)
    return written


def grids(model: Analysed) -> tuple[Pair, ...]:
    """The smaller grids that a model can be had on, the largest first, in the shape of its own.

    Raises:
        GridError: why there is none.
    """
    h, w = image_grid(model.graph, model.analysis).grid
    found, counts = list[Pair](), _counts(model)
    why: GridError | None = None
    for rows in range(h - 1, 1, -1):
        columns = max(1, round(rows * w / h))
        try:
            _followed(model, (rows, columns), None, counts)
        except GridError as error:
            why = error if why is None or error.reached > why.reached else why
            continue
        found.append((rows, columns))
    if not found and why is not None:
        raise why
    return tuple(found)
