"""The comparison of tests/acceptance/test_presets_b.py must be able to fail.

Each mutant is a mistake in what a preset says of itself, or in how a reducer is written. The preset
without it passes; with it the same comparison must not.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.methods.presets import PRESETS
from tcompile.passes.lower import lower
from tcompile.passes.reduce.reducers import merge, merge_match
from tcompile.passes.reduce.token_state import TokenState
from tests.oracles.compare import MismatchError
from tests.oracles.presets.comparing import agree
from tests.oracles.presets.held import method
from tests.oracles.presets.joining import pruned
from tests.oracles.presets.registry import ORACLES
from tests.oracles.presets.subjects import Setting, file_of, subject
from tests.support import preset_models
from tests.support.half import run_as_written
from tests.support.onnx_models import to_onnx

SETTING = Setting(65, "hf", 3)
Row = dict[str, Any]


class Bench:
    """A preset's schedule on a model, and the comparison of another with it."""

    def __init__(self, name: str, keep: str, values: Mapping[str, Any], cache: Path) -> None:
        self.path = file_of(SETTING, cache)
        self.found = subject(SETTING.source, SETTING.tokens, SETTING.depth)
        text = method(name, values)
        self.schedule = pipeline.plan(self.path, keep=keep, method=text).to_json()
        more = {"prune": pruned(self.schedule, None)} if name == "diffrate" else {}
        self.cuts = ORACLES[name].reductions(self.schedule, {**values, **more})

    def compare(self, schedule: Mapping[str, Any]) -> None:
        """Raises MismatchError where the model reduced by it is not what the oracle says."""
        model = to_onnx(pipeline.reduce(self.path, schedule=schedule).graph)
        agree(model, onnx.load(self.path), self.found, self.cuts, SETTING.batch)


def every(part: str, **values: Any) -> Callable[[list[Row]], None]:
    """Scores or reducers of all steps have other parameters."""

    def change(rows: list[Row]) -> None:
        for row in rows:
            row[part].update(values)

    return change


def some(part: str, name: str, **values: Any) -> Callable[[list[Row]], None]:
    """Those of that name, also where they are steps of a chain."""

    def change(rows: list[Row]) -> None:
        parts = [row[part] for row in rows]
        parts += [s[part] for row in rows for s in row["reducer"].get("steps", ())]
        mine = [one for one in parts if one["name"] == name]
        assert mine
        for one in mine:
            one.update(values)

    return change


def swapped(rows: list[Row]) -> None:
    """The first half of the blocks does what the second should."""
    for one, other in zip(rows, reversed(rows), strict=True):
        if rows.index(one) >= len(rows) // 2:
            break
        one["reducer"], other["reducer"] = other["reducer"], one["reducer"]


def constant_margin(rows: list[Row]) -> None:
    for row in rows:
        row["score"]["margin"] = rows[0]["score"]["margin"]


def merged_before_pruned(rows: list[Row]) -> None:
    """One token more is pruned, one less merged."""
    for row in rows:
        for step in row["reducer"].get("steps", ())[:-1]:
            step["keep"] -= 1


def other_beta(rows: list[Row]) -> None:
    terms = rows[0]["score"]["score"]["terms"]
    terms[0]["weight"], terms[1]["weight"] = 0.65, -0.35


def no_penalty(rows: list[Row]) -> None:
    for row in rows:
        row["score"] = row["score"]["score"]


DATA: tuple[tuple[str, str, Mapping[str, Any], Callable[[list[Row]], None]], ...] = (
    ("tome", "0.4", {}, every("reducer", combine="plain")),
    ("tome", "0.4", {}, every("reducer", prop_attn=False)),
    ("tome", "0.4", {}, every("reducer", metric="x")),
    ("tome", "0.4", {}, every("reducer", parity="reference")),
    ("pitome", "0.6", {}, swapped),
    ("pitome", "0.6", {}, constant_margin),
    ("pitome", "0.6", {}, every("score", form="paper")),
    ("pitome", "0.6", {}, every("reducer", prop_attn=True)),
    ("tofu", "0.6", {}, swapped),
    ("tofu", "0.6", {}, every("reducer", combine="mean")),
    ("tofu", "0.6", {}, every("reducer", combine="mlerp")),
    ("turbo", "0.6", {}, every("reducer", penalty=3.0)),
    ("turbo", "0.6", {}, every("score", agg="max")),
    ("mctf", "0.6", {}, every("reducer", bidirectional=False)),
    ("mctf", "0.6", {}, every("reducer", criteria="none")),
    ("mctf", "0.6", {}, every("reducer", combine="mean")),
    ("mctf", "0.6", {}, every("score", queries="patches")),
    ("diffrate", "0.6", {}, merged_before_pruned),
    ("diffrate", "0.6", {}, some("reducer", "assign", sizes="sum")),
    ("diffrate", "0.6", {}, some("reducer", "assign", combine="size_mean")),
    ("diffrate", "0.6", {}, some("reducer", "assign", metric="keys")),
    ("algm", "0.6", {}, some("reducer", "windows", metric="keys")),
    ("algm", "0.6", {}, some("reducer", "windows", sizes=False)),
    ("algm", "0.6", {}, some("reducer", "merge", metric="keys")),
    ("algm", "0.6", {}, some("reducer", "merge", prop_attn=True)),
    ("visionzip", "0.4", {"contextual": 6}, every("reducer", contextual=7)),
    ("visionzip", "0.4", {"contextual": 6}, every("reducer", metric="x")),
    ("prumerge", "0.4", {}, every("reducer", neighbours=31)),
    ("prumerge", "0.4", {}, every("score", heads="each")),
    ("ficoco", "0.6", {}, every("reducer", targets=2)),
    ("ficoco", "0.6", {}, other_beta),
    ("ficoco", "0.6", {}, no_penalty),
    ("tomesd", "0.6", {}, every("reducer", metric="keys")),
    ("tomesd", "0.6", {}, every("reducer", sx=4)),
    ("gtp", "0.6", {}, every("reducer", alpha=0.25)),
    ("gtp", "0.6", {}, every("reducer", semantic=7)),
    ("gtp", "0.6", {}, every("reducer", neighbours=4)),
    ("gtp", "0.6", {}, every("score", diagonal=False)),
)


#: What is tried unless all is asked for: one mistake of a kind.
FEW: tuple[int, ...] = (0, 1, 5, 8, 11, 14, 18, 21, 26, 28, 31, 36)
if os.environ.get("TCOMPILE_MATRIX", "") in ("all", "full"):
    FEW = tuple(range(len(DATA)))


def name_of(change: Callable[[list[Row]], None], number: int) -> str:
    cells = change.__closure__ or ()
    given = [cell.cell_contents for cell in cells]
    words = [str(g) if not isinstance(g, dict) else "-".join(map(str, g.items())) for g in given]
    return f"{number}-" + ("-".join(words) or change.__name__)


@lru_cache(maxsize=2)
def bench(name: str, keep: str, values: tuple[tuple[str, Any], ...], cache: Path) -> Bench:
    """The preset as it is, which passes."""
    found = Bench(name, keep, dict(values), cache)
    found.compare(found.schedule)
    return found


@pytest.mark.parametrize(
    ("name", "keep", "values", "change"),
    [DATA[i] for i in FEW],
    ids=[f"{DATA[i][0]}-{name_of(DATA[i][3], i)}" for i in FEW],
)
def test_a_wrong_parameter_is_seen(
    name: str,
    keep: str,
    values: Mapping[str, Any],
    change: Callable[[list[Row]], None],
    cache: Path,
) -> None:
    right = bench(name, keep, tuple(values.items()), cache)
    wrong = copy.deepcopy(right.schedule)
    change(wrong["reductions"])
    assert wrong != right.schedule
    with pytest.raises(MismatchError):
        right.compare(wrong)


Patch = Callable[[pytest.MonkeyPatch], None]


def split_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Tokens at odd places merge into even ones."""
    patch.setattr(merge, "shifted", lambda parameters, prefix: True)


def sizes_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What tokens stand for is not carried on."""
    patch.setattr(merge, "TokenState", lambda *a, **kw: replace(TokenState(*a, **kw), size=None))


def length_of_the_target(patch: pytest.MonkeyPatch) -> None:
    """MLERP divides by the length of the token merged into, not by that of the mean."""
    right = merge_match.Groups.features

    def features(self: merge_match.Groups, combine: str) -> gs.Tensor:
        found = right(self, combine)
        if combine != "mlerp":
            return found
        mean, target = (self._length(right(self, how)) for how in ("mean", "drop"))
        return self.b.op("Mul", found, self.b.op("Div", mean, target))

    patch.setattr(merge_match.Groups, "features", features)


def owners_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Owners are those of the last step."""
    patch.setattr(merge, "compose_owner", lambda b, before, step: step)


CODE: tuple[tuple[str, Patch], ...] = (
    ("tome", split_off_by_one),
    ("tome", sizes_forgotten),
    ("tofu", length_of_the_target),
    ("tofu", owners_forgotten),
)


@pytest.mark.parametrize(("name", "mutant"), CODE, ids=[f"{n}-{m.__name__}" for n, m in CODE])
def test_a_wrong_reducer_is_seen(
    name: str, mutant: Patch, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench(name, "0.4" if name == "tome" else "0.6", (), cache)
    mutant(monkeypatch)
    with pytest.raises(MismatchError):
        right.compare(right.schedule)


@pytest.mark.parametrize("name", ["pitome", "mctf"])
def test_sums_in_half_precision_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is kept in fp32, sizes times features overflow."""

    def careless(graph: gs.Graph, **given: Any) -> gs.Graph:
        return lower(graph, **{**given, "fp32_nodes": frozenset()})

    monkeypatch.setattr(preset_models, "lower", careless)
    half = preset_models.made_loud(next(preset for preset in PRESETS if preset.name == name))
    images = preset_models.some_images(half.spec, 1)
    assert not np.isfinite(run_as_written(half.model, {"image": images})["tokens"]).all()
