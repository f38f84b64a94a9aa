"""Acceptance: presets that merge, spread or pool tokens are what their papers say.

As test_presets.py, by the same models; but an image on which float32 cannot tell the closest of
hundreds of decisions is left out only if it comes out otherwise (`agree`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile import pipeline
from tcompile.core.schedule import Shape
from tcompile.methods.composition import compose
from tests.oracles.compare import check_structure
from tests.oracles.presets import lists
from tests.oracles.presets.comparing import agree
from tests.oracles.presets.held import method
from tests.oracles.presets.joining import pruned
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.subjects import Setting, file_of, settings, subject
from tests.support.onnx_models import to_onnx


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
    tokens: Sequence[int] = (65, 197, 261, 577)

    @property
    def id(self) -> str:
        given = {**self.values, **self.counts}
        return "-".join([self.name, *(f"{k}={v}" for k, v in given.items())])


ASKS: tuple[Ask, ...] = (
    Ask("tome"),
    Ask("tome", None, counts={"r": 8, "inflect": -1}),
    Ask("tome", "0.6", {"parity": "reference"}, cls=True),
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
    Ask("diffrate", None, counts={"table": "deit-s"}, depth=12, tokens=(197,)),
    Ask("pyra", None, counts={"level": "high"}, depth=12, tokens=(197,)),
)

HELD = [
    (ask, one)
    for turn, ask in enumerate(ASKS)
    for again in (30, 60)
    for one in settings(turn + again, depth=ask.depth, tokens=ask.tokens, cls=ask.cls)
    if again == 30 or ask.depth == 4
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
    schedule = reduced.schedule.to_json()
    values = dict(ask.values)
    if ask.name == "diffrate":
        values["prune"] = pruned(schedule, ask.counts.get("table"))
    cuts = ORACLES[ask.name].reductions(schedule, values)
    assert cuts
    agree(model, onnx.load(path), found, cuts, setting.batch)


# ---- counts (METHODS, "Test oracles (counts)") ---------------------------------------------------

VIT = Shape(tokens=197, prefix=1, patches=196, blocks=12)


def left(text: str) -> list[int]:
    """Patches after each block's attention."""
    rows = compose(text, VIT, True, None).to_json()["tokens_per_block"]
    return [row["mlp"] - 1 for row in rows]


def test_counts_of_lists() -> None:
    for level, removals in lists.PYRA.items():
        assert left(f"pyra:level={level}") == lists.after(removals, 196)
    assert left("tome:r=8,inflect=-1") == lists.after(lists.decreasing(8, 12), 196)
    assert left("tome:r=13,inflect=-0.5") == lists.after(
        lists.inflected(13, Fraction(-1, 2), 12), 196
    )
    assert left("tofu:r=20") == lists.after([20] * 12, 196)
    assert left("mctf:r=16") == lists.after([16] * 12, 196)
    assert left("gtp:p=8") == [196 - 8 * i for i in range(1, 13)]


def test_counts_of_turbo() -> None:
    """None merge once fewer than 40 tokens are left, the class token among them."""
    counts, found = 196, []
    for _ in range(12):
        counts -= min(20, counts // 2) if counts + 1 >= 40 else 0
        found.append(counts)
    assert left("turbo:r=20") == found
    assert found[-1] == found[-2]


def test_counts_of_pitome() -> None:
    assert left("pitome:ratio=0.9") == lists.pitome("0.9", 196, 12)
    assert left("pitome:ratio=0.9")[0] == 196 - 19
    assert left("pitome:ratio=0.9125") == lists.pitome("0.9125", 196, 12)


@pytest.mark.parametrize("table", lists.DIFFRATE)
def test_counts_of_diffrate(table: str) -> None:
    """After pruning and after merging, class token included."""
    pruned, merged = lists.DIFFRATE[table]
    schedule = compose(f"diffrate:table={table}", VIT, True, None)
    assert [n + 1 for n in left(f"diffrate:table={table}")] == merged
    now, at = 197, {r.site: r for r in schedule.reductions}
    for block in range(12):
        one = at.get(f"attn:{block}")
        steps = [] if one is None else one.reducer.parameters.get("steps", [])
        between = now if one is None else one.keep + 1
        if steps:
            between = steps[0]["keep"] + 1
        elif one is not None and one.reducer.name == "assign":
            between = now
        assert between == pruned[block]
        now = merged[block]


def test_counts_of_visionzip() -> None:
    """192 of 577: the class token, 161 dominant ones and 30 contextual ones."""
    shape = Shape(tokens=577, prefix=1, patches=576, blocks=24)
    (only,) = compose("visionzip:dominant=162,contextual=30", shape, True, None).reductions
    assert only.site == "output"
    assert only.keep == 161 + 30
    assert only.reducer.parameters["contextual"] == 30
