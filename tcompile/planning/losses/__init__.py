"""What a step loses: measured on images, or from the attention of one dense pass."""

from tcompile.planning.losses.base import SiteLosses
from tcompile.planning.losses.data import Calibration, read_calibration, split
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.losses.sensitivity import measured_losses

__all__ = [
    "Calibration",
    "SiteLosses",
    "distance",
    "measured_losses",
    "read_calibration",
    "split",
    "unit",
]
