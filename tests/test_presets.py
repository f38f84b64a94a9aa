"""Acceptance: each preset is what its paper says, held against PyTorch that drops, fuses and merges
tokens inside the models of timm and transformers (`tests/oracles/presets`).

By default each preset meets one of the settings of `subjects`, over all presets every one of them;
with TCOMPILE_MATRIX=all each meets all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.presets.held import holds
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.subjects import Setting, settings


@dataclass(frozen=True)
class Ask:
    """A preset with the parameters that it is asked for with, on models as deep and as long."""

    name: str
    keep: str | None = "0.6"
    values: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 4

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.values.items())])


ASKS: tuple[Ask, ...] = (
    Ask("topk"),
    Ask("evit"),
    Ask("bypass"),
)

HELD = [(ask, one) for turn, ask in enumerate(ASKS) for one in settings(turn, depth=ask.depth)]


@pytest.mark.parametrize(("ask", "setting"), HELD, ids=[f"{a.id}-{s.id}" for a, s in HELD])
def test_a_preset_is_what_its_paper_says(ask: Ask, setting: Setting, cache: Path) -> None:
    holds(ORACLES[ask.name], setting, cache, ask.values, ask.keep)
