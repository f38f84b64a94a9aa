"""Modelled latency for targets that are not at hand: a roofline with tiles and waves of tiles.

docs/roofline.md has the formulas, the assumptions and the error where it could be measured.
"""

from tcompile.profiling.roofline.cpu import cpu_device
from tcompile.profiling.roofline.device import Device, device_of
from tcompile.profiling.roofline.model import Kernel, Modelled, modelled

__all__ = ["Device", "Kernel", "Modelled", "cpu_device", "device_of", "modelled"]
