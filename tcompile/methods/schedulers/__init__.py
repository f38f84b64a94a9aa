"""Schedulers: how many tokens leave where."""

from tcompile.methods.schedulers.base import Place, Scheduler
from tcompile.methods.schedulers.blocks import (
    around,
    constant,
    counted,
    inside,
    leaving,
    ramp,
    ratio,
    single,
    stages,
    until_last,
)
from tcompile.methods.schedulers.grid import (
    cells,
    dominant,
    frames,
    lined,
    lines,
    local_then_global,
    rows,
)
from tcompile.methods.schedulers.searched import fit, greedy, sigmoid

__all__ = [
    "Place",
    "Scheduler",
    "around",
    "cells",
    "constant",
    "counted",
    "dominant",
    "fit",
    "frames",
    "greedy",
    "inside",
    "leaving",
    "lined",
    "lines",
    "local_then_global",
    "ramp",
    "ratio",
    "rows",
    "sigmoid",
    "single",
    "stages",
    "until_last",
]
