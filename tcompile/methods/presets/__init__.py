"""Presets: published methods as data; the lists below are the registry.

Presets of other packages are found by entry points of the group `tcompile.presets`.
"""

from __future__ import annotations

from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.dense import DENSE
from tcompile.methods.presets.image import IMAGE, RESOLUTION
from tcompile.methods.presets.merging import MERGING, MIXED
from tcompile.methods.presets.pruning import CALIBRATED, LEARNED, PRUNING, STATIC
from tcompile.methods.presets.tower import TOWER

__all__ = ["ALL", "PRESETS", "RESOLUTION", "Preset"]

#: Those by which tokens leave at sites of the graph.
PRESETS: tuple[Preset, ...] = (
    *PRUNING,
    *MERGING,
    *MIXED,
    *DENSE,
    *TOWER,
    *LEARNED,
    *STATIC,
    *CALIBRATED,
)
#: And those by which there are fewer from the start.
ALL: tuple[Preset, ...] = (*PRESETS, *IMAGE)
