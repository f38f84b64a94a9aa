"""Presets that take a smaller image, so that there are fewer tokens from the start."""

from __future__ import annotations

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.presets.base import Preset
from tcompile.methods.schedulers.base import Scheduler

#: Rules of interpolation, see `tcompile.passes.resize.rules`.
_TABLES = (
    "bicubic-antialias",
    "bicubic",
    "bicubic-offset",
    "bicubic-corners",
    "bilinear-antialias",
    "bilinear",
)

RESOLUTION = Preset(
    name="resolution",
    family="image",
    summary="the image on a smaller grid of patches: the baseline that methods are held against",
    formula="image h x w -> h' x w'; position tables interpolated, rotary tables computed for the "
    "smaller grid, all shapes follow",
    reference="Plain down-sampling, the baseline of Li et al., VTC-Bench: How Can Visual Token "
    "Compression Methods Be Compared Fairly, 2025 (arXiv 2510.07143)",
    scheduler=Scheduler(
        "all blocks carry the patches of the smallest grid that has as many as asked for, in the "
        "shape of the model's own",
        lambda context, values: [],
    ),
    score=None,
    reducer=Spec("none"),
    parameters={
        "grid": Parameter(str, None, "rows x columns of patches, such as 12x12"),
        "size": Parameter(str, None, "rows x columns of pixels, such as 168 or 168x224"),
        "rule": Parameter(
            str,
            None,
            "how absolute positions are interpolated; default: as `tcompile export` recorded it, "
            f"else as loses least on the images that are planned with, else {_TABLES[0]}",
            _TABLES,
        ),
        "relative": Parameter(
            str,
            None,
            "how relative positions are interpolated; default bilinear",
            (*_TABLES, "geometric"),
        ),
        "rotary": Parameter(
            str,
            None,
            "what rotary angles follow: the number of a row (index), its share of the grid "
            "(scaled), its place between the edges (centred), between the first and last "
            "(corners); default: what the table in the file shows",
            ("index", "scaled", "centred", "corners"),
        ),
    },
    budget=("grid", "size"),
    needs=("grid",),
    published="--keep 0.56: 12 x 12 of 16 x 16 patches",
    note="the input keeps its size and is resized in the graph, bilinear with antialiasing; with "
    "--resize host the input is the smaller image; outputs with a row for each patch need "
    "--outputs restored",
)

IMAGE: tuple[Preset, ...] = (RESOLUTION,)
