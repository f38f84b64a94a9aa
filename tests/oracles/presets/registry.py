"""The oracles of all presets, by name."""

from __future__ import annotations

from tests.oracles.presets.base import PresetOracle
from tests.oracles.presets.joining import JOINING
from tests.oracles.presets.pruning import PRUNING

ORACLES: dict[str, PresetOracle] = {oracle.name: oracle for oracle in (*PRUNING, *JOINING)}
