"""The oracles of all presets, by name."""

from __future__ import annotations

from tests.oracles.presets.base import PresetOracle
from tests.oracles.presets.joining import JOINING
from tests.oracles.presets.pruning import PRUNING
from tests.oracles.presets.staying import STAYING
from tests.oracles.presets.towers import TOWERS

ORACLES: dict[str, PresetOracle] = {
    oracle.name: oracle for oracle in (*PRUNING, *STAYING, *TOWERS, *JOINING)
}
