"""Schedulers: how many tokens leave where (METHODS SCH1 to SCH8)."""

from tcompile.planning.schedulers.around import around, inside, until_last
from tcompile.planning.schedulers.base import Place, Scheduler
from tcompile.planning.schedulers.grid import (
    cells,
    dominant,
    frames,
    lined,
    lines,
    local_then_global,
    rows,
)
from tcompile.planning.schedulers.layers import constant, ramp, ratio
from tcompile.planning.schedulers.lists import counted, leaving
from tcompile.planning.schedulers.once import single
from tcompile.planning.schedulers.searched import fit, greedy, sigmoid
from tcompile.planning.schedulers.stages import stages

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
