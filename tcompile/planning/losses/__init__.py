"""Losses of steps: measured on images, or from the attention of one dense pass."""

from tcompile.planning.losses.attention_mass import attention_losses
from tcompile.planning.losses.base import Kind, SiteLosses
from tcompile.planning.losses.data import Calibration, read_calibration, split
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.losses.drop import Drop, images_needed, measure_drop
from tcompile.planning.losses.sensitivity import measured_losses

__all__ = [
    "Calibration",
    "Drop",
    "Kind",
    "SiteLosses",
    "attention_losses",
    "distance",
    "images_needed",
    "measure_drop",
    "measured_losses",
    "read_calibration",
    "split",
    "unit",
]
