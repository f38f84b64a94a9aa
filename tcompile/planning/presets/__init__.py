"""Presets: published methods as data; the list below is the registry.

Presets of other packages are found by entry points of the group `tcompile.presets`.
"""

from __future__ import annotations

from tcompile.planning.presets.base import Preset
from tcompile.planning.presets.calibrated import CALIBRATED
from tcompile.planning.presets.dense import DENSE
from tcompile.planning.presets.learned import LEARNED
from tcompile.planning.presets.merging import MERGING
from tcompile.planning.presets.mixed import MIXED
from tcompile.planning.presets.pruning import PRUNING
from tcompile.planning.presets.static import STATIC
from tcompile.planning.presets.tower import TOWER

__all__ = ["PRESETS", "Preset"]

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
