"""Acceptance: presets that merge, spread or pool tokens are what their papers say.

As tests/test_presets.py, by the same models; but an image on which float32 cannot tell the closest
of hundreds of decisions is left out only if it comes out otherwise (`agree`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile import pipeline
from tcompile.ir import to_onnx
from tests.oracles.compare import check_structure
from tests.oracles.presets import lists
from tests.oracles.presets.comparing import agree
from tests.oracles.presets.held import method
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.subjects import Setting, file_of, settings, subject


@dataclass(frozen=True)
class Ask:
    """A preset with the parameters that it is asked for with; counts: those of them that say how
    many leave, which the schedule tells the oracle."""

    name: str
    keep: str | None = "0.6"
    values: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 4
    cls: bool | None = None

    @property
    def id(self) -> str:
        given = {**self.values, **self.counts}
        return "-".join([self.name, *(f"{k}={v}" for k, v in given.items())])


ASKS: tuple[Ask, ...] = (
    Ask("tome"),
    Ask("tome", None, counts={"r": 8, "inflect": -1}),
    Ask("pitome"),
    Ask("pitome", None, {"mode": "protected", "energy_form": "paper"}, {"ratio": 0.9}),
    Ask("pitome", "0.6", {"mode": "parity", "margin": 0.9}),
    Ask("tofu"),
    Ask("tofu", None, {"combine": "mean", "switch": 1}, {"r": 10}),
    Ask("turbo"),
    Ask("turbo", None, {"alpha": 3.0, "beta": 0.5, "gamma": 2}, {"r": 7}),
    Ask("mctf"),
    Ask("diffrate"),
    Ask("algm"),
    Ask("visionzip", "0.4", {"contextual": 6}),
    Ask("prumerge", "0.4", cls=True),
    Ask("ficoco", cls=True),
    Ask("llava-zip", None, {"side": 2}),
    Ask("llava-zip", None, {"side": 3}),
    Ask("atme"),
    Ask("tomesd"),
    Ask("gtp"),
    Ask("pyra"),
)

HELD = [
    (ask, one)
    for turn, ask in enumerate(ASKS)
    for again in (30, 60)
    for one in settings(turn + again, depth=ask.depth, cls=ask.cls)
]
HELD = [pair for i, pair in enumerate(HELD) if pair not in HELD[:i]]


@pytest.mark.parametrize(("ask", "setting"), HELD, ids=[f"{a.id}-{s.id}" for a, s in HELD])
def test_a_preset_is_what_its_paper_says(ask: Ask, setting: Setting, cache: Path) -> None:
    path = file_of(setting, cache)
    found = subject(setting.source, setting.tokens, setting.depth)
    name = method(ask.name, {**ask.values, **ask.counts})
    reduced = pipeline.reduce(path, target="cpu", keep=ask.keep, method=name)
    model = to_onnx(reduced.graph)
    check_structure(model)
    cuts = ORACLES[ask.name].reductions(reduced.schedule.to_json(), ask.values)
    assert cuts
    agree(model, onnx.load(path), found, cuts, setting.batch)


__all__ = ["lists"]
