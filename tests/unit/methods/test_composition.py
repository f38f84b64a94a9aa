"""Schedules: counts from PRESETS' oracles, exact rounding, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule, Shape, read_schedule
from tcompile.methods.composition import compose, parse_keep
from tcompile.methods.context import SiteConstraints
from tcompile.methods.presets import PRESETS, Preset

VIT = Shape(197, 1, 196, 12)


def mlp_counts(text: str, keep: str | None = None, shape: Shape = VIT) -> list[int]:
    return [b.mlp for b in compose(text, shape, True, keep).tokens_per_block()]


def given(method: Preset) -> str:
    return f"{method.name}:head={__file__}" if "head" in method.required else method.name


def test_evit_published_counts() -> None:
    counts = mlp_counts("evit:rate=0.7")
    assert [counts[i] for i in (2, 3, 6, 9)] == [197, 140, 100, 72]


def test_tome_published_counts() -> None:
    assert mlp_counts("tome:r=13")[-1] == 41
    assert mlp_counts("tome:r=16")[-2:] == [21, 11]


LEAVING = ["topk", "evit", "tome"]


@pytest.mark.parametrize("method", LEAVING)
@pytest.mark.parametrize("keep", ["0.9", "0.6", "0.5", "0.35"])
def test_keep_is_what_leaves_the_encoder(method: str, keep: str) -> None:
    from fractions import Fraction
    from math import ceil

    for patches in (49, 196, 256, 576, 729):
        shape = Shape(patches + 1, 1, patches, 12)
        made = compose(method, shape, True, keep)
        assert made.final == ceil(Fraction(keep) * patches)
        counts = [r.keep for r in made.reductions]
        assert counts == sorted(counts, reverse=True)
        assert len(set(counts)) == len(counts)


def test_bypass_keeps_the_map_whole() -> None:
    made = compose("bypass", Shape(197, 1, 196, 12), True, "0.6")
    assert made.final == 196
    assert [r.site for r in made.reductions] == [f"around:{i}" for i in range(3, 12)]
    assert {(b.attention, b.mlp) for b in made.tokens_per_block()[3:]} == {(119, 119)}
    assert {(b.attention, b.mlp) for b in made.tokens_per_block()[:3]} == {(197, 197)}


def test_sites_follow_the_room_of_the_model() -> None:
    shape = Shape(64, 0, 64, 4)
    groups = SiteConstraints(frozenset({"attn:2", "attn:3"}), {"attn:2": 4, "attn:3": 4})
    (step,) = compose("topk", shape, False, "0.6", groups).reductions
    assert (step.site, step.keep) == ("attn:2", 40)  # ceil(0.6 · 16 groups) = 10
    side_by_side = SiteConstraints(frozenset({"block:1"}), parallel=frozenset(range(4)))
    assert compose("topk", shape, False, "0.5", side_by_side).reductions[0].site == "block:1"
    windows = SiteConstraints(frozenset({"around:2"}), windows=True)
    (step,) = compose("bypass", shape, False, "0.5", windows).reductions
    assert step.score is not None
    assert (step.site, step.score.name) == ("around:2", "norm")


def test_rounding_is_exact_on_the_decimal() -> None:
    # 0.7 · 10 in binary floating point is 7.000000000000001 on some paths: ceil would give 8.
    assert compose("topk", Shape(11, 1, 10, 12), True, 0.7).final == 7
    assert parse_keep("0.1") * 10 == 1


def test_keep_one_reduces_nothing() -> None:
    for method in PRESETS:
        assert compose(given(method), VIT, True, "1.0").reductions == ()


def test_a_keep_that_rounds_up_to_all_reduces_nothing() -> None:
    for method in PRESETS:
        if not {"calibration", "frames"} & set(method.needs):
            assert compose(given(method), Shape(50, 1, 49, 12), True, "0.99").reductions == ()


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("topk", None),
        ("topk", "0"),
        ("topk", "1.2"),
        ("topk", "-1"),
        ("topk", "many"),
        ("topk", "nan"),
        ("evit:rate=0.7", "0.5"),
        ("evit:rate=2", None),
        ("tome:r=x", None),
        ("tome:s=3", None),
        ("tome:r", None),
        ("nosuch", "0.5"),
        ("topk:block=12", "0.5"),
        ("topk:site=middle", "0.5"),
        ("tome:r=-1", None),
        ("topk", "1e-999999999"),
        ("evit:rate=1e-999999999", None),
        ("topk", "inf"),
    ],
)
def test_bad_requests(text: str, keep: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        compose(text, VIT, True, keep)
    assert "\n" not in str(caught.value)


def test_tome_says_when_a_budget_is_out_of_reach() -> None:
    with pytest.raises(UsageError, match="at best"):
        compose("tome", Shape(197, 1, 196, 2), True, "0.1")


def test_schedule_survives_json_and_yaml(tmp_path: Path) -> None:
    import yaml

    made = compose("evit", VIT, True, "0.6")
    as_json, as_yaml = tmp_path / "s.json", tmp_path / "s.yaml"
    as_json.write_text(json.dumps(made.to_json()))
    as_yaml.write_text(yaml.safe_dump(made.to_json()))
    assert read_schedule(as_json) == made == read_schedule(as_yaml)
    assert Schedule.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "model": 3}', "[" * 100_000, '{"schema": 1}'],
)
def test_what_is_no_schedule(text: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_schedule(path)


@pytest.mark.parametrize("count", ["true", "null", "8.5", "1e999", "NaN", '"8"', "[8]"])
def test_counts_are_whole_numbers(count: str, tmp_path: Path) -> None:
    document = json.dumps(compose("topk", VIT, True, "0.5").to_json())
    path = tmp_path / "s.json"
    path.write_text(document.replace('"keep": 98', f'"keep": {count}'))
    with pytest.raises(UsageError, match="not a schedule"):
        read_schedule(path)
