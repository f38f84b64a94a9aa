"""The image input, the grid of patches that comes from it, and the sizes that it may have."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis, Root
from tcompile.analysis.model import Analysis
from tcompile.core.graph import image_inputs, shape
from tcompile.passes.resize.sizes import GridError

Pair = tuple[int, int]
_CHANNELS = 4


@dataclass(frozen=True)
class ImageGrid:
    """An image and its patches.

    Attributes:
        name: of the input.
        dims: which of its dims are rows and columns.
        size: rows and columns of the image.
        grid: of the patches.
        roots: the index sets of the image's rows and columns.
    """

    name: str
    dims: Pair
    size: Pair
    grid: Pair
    roots: tuple[Root, Root]

    def size_for(self, grid: Pair) -> Pair:
        """The image that another grid needs: patches are as large as they are."""
        h, w = (
            int(n * Fraction(g, old)) if n % old == 0 else g * (n // old)
            for n, g, old in zip(self.size, grid, self.grid, strict=True)
        )
        return h, w


def image_grid(graph: gs.Graph, analysis: Analysis) -> ImageGrid:
    """The image that the patches of the first tower come from.

    Raises:
        GridError: the patches are no grid of rows and columns, or the input is not one image.
    """
    images = image_inputs(graph)
    if len(images) != 1:
        names = ", ".join(f"'{t.name}'" for t in images)
        raise GridError(f"its inputs {names} are images of one size each: none is resized")
    (image,) = images
    axes, rank = analysis.facts.axes[image.name], len(image.shape)
    if rank < 4:
        raise GridError(
            f"its input '{image.name}' {list(image.shape)} holds patches, not an image: the grid "
            "is a matter of what packs them",
            hint="export the model for a smaller image",
        )
    grid = _grid(analysis)
    last = rank - 1 if int(shape(image)[-1]) > _CHANNELS else rank - 2
    dims = (last - 1, last)
    roots = tuple(_whole(axes[d], image.name) for d in dims)
    size = (shape(image)[dims[0]], shape(image)[dims[1]])
    return ImageGrid(image.name, dims, size, grid, (roots[0], roots[1]))


def _grid(analysis: Analysis) -> Pair:
    space = analysis.space
    axis = space.whole_patches or ()
    if len(axis) < 2 or len(space.grid) < 2:
        raise GridError(
            f"its {space.patches} patches are no grid of rows and columns that the analysis sees",
            hint="`tcompile inspect` shows the grid",
        )
    return space.grid[-2], space.grid[-1]


def _whole(axis: Axis, name: str) -> Root:
    if len(axis) != 1 or not axis[0].whole:
        raise GridError(f"rows and columns of its input '{name}' are not known")
    return axis[0].root


def is_float(tensor: gs.Tensor) -> bool:
    """Return whether a tensor holds floats."""
    return bool(np.dtype(tensor.dtype).kind == "f")


def patch_axis(analysis: Analysis) -> Axis:
    """The axis of the patches, (…, rows, columns)."""
    return analysis.space.whole_patches or ax.ONE
