"""Every preset: counts from PRESETS' oracles and from --keep; what each declares."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path

import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule, Shape
from tcompile.methods.composition import compose
from tcompile.methods.context import SiteConstraints
from tcompile.methods.presets import PRESETS, Preset
from tcompile.methods.presets.merging import DIFFRATE_TABLES, PYRA_LISTS
from tcompile.methods.schedulers.base import inflected

VIT = Shape(197, 1, 196, 12)
DEIT = Shape(198, 2, 196, 12)
CLIP = Shape(577, 1, 576, 24)
VIDEO = SiteConstraints(frozenset({"output"}), grid=(8, 4, 4))

#: Any file: composing does not look into it.
HEAD = Path(__file__)
SHAPES = (VIT, DEIT, CLIP, Shape(65, 1, 64, 6), Shape(261, 5, 256, 12), Shape(64, 0, 64, 3))

#: Presets whose map is whole at the end, and those whose counts are those of a grid.
RETURN = ("bypass", "idlevit", "evo-vit", "svit", "tomesd", "cropr")
COARSE = ("atme", "llava-zip", "dycoke")

#: Those whose counts need no images (tests/unit/methods/test_calibration.py has the others), and of
#: these those that need no video.
COUNTED = [m for m in PRESETS if "calibration" not in m.needs]
OF_IMAGES = [m for m in COUNTED if "frames" not in m.needs]


def text(name: str) -> str:
    """The preset, with what it must be given."""
    preset = next(m for m in PRESETS if m.name == name)
    return f"{name}:head={HEAD}" if "head" in preset.required else name


def patches(method: str, shape: Shape = VIT) -> list[int]:
    """Patch tokens after each site, where the preset sets the budget."""
    return [r.keep for r in compose(method, shape, True, None).reductions]


def test_published_counts_of_stages() -> None:
    assert patches("evit:rate=0.7") == [139, 99, 71]  # 197, 140, 100, 72 with CLS
    assert patches("ats:rate=0.7") == [138, 97, 68]  # 139, 98, 69 unfused
    assert patches(f"dynamicvit:head={HEAD},rate=0.7") == [137, 96, 67]
    assert patches(f"spvit:head={HEAD},rate=0.7") == [138, 97, 68]
    sites = [r.site for r in compose(f"dynamicvit:head={HEAD}", VIT, True, "0.5").reductions]
    assert sites == ["block:2", "block:5", "block:8"]


def test_published_counts_of_constant_r() -> None:
    assert patches("tome:r=13")[-1] == 40
    assert patches("tome:r=16")[-2:] == [20, 10]
    assert inflected(8, Fraction(-1), 12) == [
        int(Fraction(16) - Fraction(16 * i, 11)) for i in range(12)
    ]
    steps = [196, *patches("tome:r=8,inflect=-1")]
    gone = [a - b for a, b in pairwise(steps)]
    assert gone == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1]  # and none in the last block
    assert patches("gtp:p=8") == [196 - 8 * (i + 1) for i in range(12)]
    assert patches("turbo:r=16")[-1] == 36  # at 37 tokens with CLS it stops
    ficoco = compose("ficoco:r=42", CLIP, True, None).reductions
    assert (ficoco[0].site, ficoco[0].keep, len(ficoco)) == ("attn:12", 534, 12)


def test_published_counts_of_constant_ratio() -> None:
    assert patches("pitome:ratio=0.9")[0] == 196 - 19
    made = compose("pitome:ratio=0.9", VIT, True, None).reductions
    assert [r.reducer.parameters["split"] for r in made] == ["energy"] * 6 + ["protected"] * 6
    margins = [r.score.parameters["margin"] for r in made if r.score]
    assert margins == [round(0.75 * (1 - i / 12), 6) for i in range(12)]


def test_pomt_deploys_what_was_planned() -> None:
    (step,) = compose("pomt:r=56", VIT, True, None).reductions
    # N − R = 141 with CLS: 139 kept, and the mean of the other 57.
    assert (step.site, step.keep + 1, step.keep - 1) == ("attn:3", 141, 139)
    assert 196 - (step.keep - 1) == 57


@pytest.mark.parametrize("table", list(DIFFRATE_TABLES))
def test_diffrate_follows_its_tables(table: str) -> None:
    pruned, merged = DIFFRATE_TABLES[table]
    made = compose(f"diffrate:table={table}", VIT, True, None)
    assert [b.mlp for b in made.tokens_per_block()] == list(merged)
    before = 196
    for step in made.reductions:
        middle = pruned[int(step.site[5:])] - 1
        counts = [middle] * (middle < before) + [step.keep] * (step.keep < middle)
        if len(counts) == 2:
            assert [s["keep"] for s in step.reducer.parameters["steps"]] == counts
        else:
            assert step.reducer.name == ("topk" if middle < before else "assign")
        before = step.keep


def test_pyra_follows_its_lists() -> None:
    def gone(level: str, shape: Shape) -> list[int]:
        counts = [shape.patches, *patches(f"pyra:level={level}", shape)]
        return [a - b for a, b in pairwise(counts)]

    assert gone("low", VIT) == [*[16] * 11, 10]
    assert gone("high", VIT)[:10] == list(PYRA_LISTS["high"][0][:10])
    assert gone("high", Shape(197, 1, 196, 24)) == list(PYRA_LISTS["high"][1])


@pytest.mark.parametrize("method", ["diffrate:table=deit-s", "pyra:level=low", "pyra:level=high"])
def test_published_lists_are_refused_for_other_depths(method: str) -> None:
    with pytest.raises(UsageError, match=r"published for .* blocks, this model has 6"):
        compose(method, Shape(197, 1, 196, 6), True, None)


def test_visionzip_counts_cls_among_the_dominant() -> None:
    for dominant, contextual in ((162, 30), (108, 20), (54, 10)):
        (step,) = compose(f"visionzip:dominant={dominant}", CLIP, True, None).reductions
        assert step.keep == dominant - 1 + contextual  # 161 + CLS + 30 = 192
        assert step.reducer.parameters["contextual"] == contextual
        keep = Fraction(step.keep, 576)
        (same,) = compose("visionzip", CLIP, True, keep).reductions
        assert same == step


def test_published_tower_counts() -> None:
    finals = [compose("fastervlm", CLIP, True, k).final for k in ("0.25", "0.1", "0.05")]
    assert finals == [144, 58, 29]
    assert compose("prumerge", CLIP, True, "0.125").final == 72
    assert compose("fopru:unit=row", CLIP, True, "0.25").final == 6 * 24
    assert compose("llava-zip:side=3", CLIP, True, None).final == 64
    (step,) = compose("dycoke:rate=0.3", Shape(128, 0, 128, 4), False, None, VIDEO).reductions
    assert step.keep == 2 * 16 + 6 * 5
    (step,) = compose(f"tnt:head={HEAD}", VIT, True, "0.469").reductions
    assert [s["keep"] for s in step.reducer.parameters["steps"]] == [117, 92]


def test_turbo_fades_with_depth() -> None:
    made = compose("turbo:r=8,alpha=2,beta=0.5,gamma=1", VIT, True, None).reductions
    assert [r.reducer.parameters["penalty"] for r in made][:4] == [30, 60, 30, 15]


def test_tofu_drops_early_and_merges_late() -> None:
    made = compose("tofu:r=8", VIT, True, None).reductions
    assert [r.reducer.parameters["combine"] for r in made] == ["drop"] * 6 + ["mlerp"] * 6


def test_spatten_ramp() -> None:
    made = compose("spatten", VIT, True, "0.5").reductions
    assert [r.site for r in made] == [f"attn:{i}" for i in range(3, 12)]
    counts = [196, *(r.keep for r in made)]
    assert {a - b for a, b in pairwise(counts)} <= {10, 11}
    deep = compose("spatten", Shape(197, 1, 196, 24), True, "0.5").reductions
    assert deep[0].site == "attn:4"  # ceil(0.15 · 24)


def test_idlevit_powers() -> None:
    made = compose("idlevit:rate=0.7", VIT, True, None).reductions
    assert [r.site for r in made] == [f"around:{i}" for i in range(4, 12)]
    assert [r.keep for r in made] == [137] * 3 + [96] * 3 + [67] * 2


def test_cropr_brings_all_back_before_the_last_block() -> None:
    made = compose(f"cropr:head={HEAD},r=12", VIT, True, None)
    assert [b.attention for b in made.tokens_per_block()][:3] == [197, 184, 172]
    assert made.tokens_per_block()[-1].attention == 197
    assert made.reductions[-1].reducer.to_json() == {"name": "return", "fill": "stale"}
    assert made.reductions[-1].score is None


def test_algm_takes_windows_then_pairs() -> None:
    first, second = compose("algm:local=20,total=100", VIT, True, None).reductions
    assert (first.site, first.keep, first.reducer.name) == ("attn:0", 136, "windows")
    assert (second.site, second.keep, second.reducer.name) == ("attn:4", 100, "merge")
    with pytest.raises(UsageError, match="out of reach"):
        compose("algm:local=1,total=60", VIT, True, None)


@pytest.mark.parametrize("keep", ["0.9", "0.77", "0.5", "0.35"])
@pytest.mark.parametrize("preset", COUNTED, ids=lambda m: m.name)
def test_counts_of_every_preset(preset: Preset, keep: str) -> None:
    for shape in SHAPES:
        if preset.needs == ("frames",):
            room = SiteConstraints(frozenset({"output"}), grid=(shape.patches // 4, 2, 2))
        else:
            room = None
        made = compose(text(preset.name), shape, True, keep, room)
        final = ceil(Fraction(keep) * shape.patches)
        narrowest = min([r.keep for r in made.reductions], default=shape.patches)
        if preset.name in RETURN:
            assert (made.final, narrowest) == (shape.patches, final)
        elif preset.name in COARSE:
            told = (f"asked for {final}:", "no token leaves")
            assert made.final == final or any(t in n for t in told for n in made.notes)
        else:
            assert made.final == final
            counts = [r.keep for r in made.reductions]
            assert counts == sorted(set(counts), reverse=True)
        assert Schedule.from_json(made.to_json()) == made


@pytest.mark.parametrize("preset", PRESETS, ids=lambda m: m.name)
def test_every_preset_says_what_it_is(preset: Preset) -> None:
    assert preset.name == preset.name.lower()
    for words in (preset.summary, preset.formula, preset.reference, preset.scheduler.words):
        assert words
        assert "\n" not in words
    assert set(preset.budget) | set(preset.required) <= set(preset.parameters)
    assert preset.summary[0].islower()
    assert not preset.summary.endswith(".")


def test_names_are_unique() -> None:
    assert len({m.name for m in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize("preset", OF_IMAGES, ids=lambda m: m.name)
def test_without_cls_the_plan_says_so(preset: Preset) -> None:
    made = compose(text(preset.name), Shape(64, 0, 64, 12), False, "0.5")
    with_cls = compose(text(preset.name), Shape(65, 1, 64, 12), True, "0.5")
    assert '"cls"' not in str(made.to_json()).replace("'", '"').replace('"method"', "")
    read = any("'cls'" in str(r.to_json()) for r in with_cls.reductions)
    assert any("no CLS" in n for n in made.notes) == read


@pytest.mark.parametrize(
    ("method", "keep", "says"),
    [
        ("cropr", "0.5", "needs head"),
        ("cropr:head=nowhere.npz", "0.5", r"head=nowhere\.npz is not a file"),
        ("diffrate:table=deit-s", "0.5", "both set the budget"),
        ("diffrate:table=deit-x", None, "deit-s or deit-b"),
        ("pitome:ratio=0", None, "less than"),
        ("pomt:r=195", None, "leaves fewer than 2"),
        ("turbo:r=3,gamma=12", None, "gamma=12 is not a block: 0 to 11"),
        ("turbo:r=3,beta=3", None, "more than 2"),
        ("gtp:p=3,alpha=1e38", None, "more than 1"),
        ("dart:pivots=0", "0.5", "less than"),
        ("tomesd", "0.2", "one token of each cell"),
        (f"cropr:head={HEAD},r=60", None, "leaves none"),
        ("visionzip:dominant=9,contextual=500", None, ""),
        ("visionzip:dominant=1", None, "less than 2"),
        ("evit:rate=1", None, ""),
        ("algm:total=500", None, ""),
        ("tome:r=0", None, ""),
        ("topk", "0.999", ""),
        ("tome:inflect=-2", "0.5", "less than"),
        ("dycoke", "0.5", "frames of a video"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, keep: str | None, says: str) -> None:
    if says:
        with pytest.raises(UsageError, match=says):
            compose(method, VIT, True, keep)
    else:
        made = compose(method, VIT, True, keep)
        assert made.reductions == ()
        assert "no token leaves" in made.notes[-1]


def test_a_grid_is_needed_where_a_preset_says_so() -> None:
    room = SiteConstraints(frozenset(f"attn:{i}" for i in range(12)) | {"output"})
    for name in ("llava-zip", "atme", "algm", "tomesd"):
        with pytest.raises(UsageError, match="needs patches in a grid"):
            compose(name, VIT, True, "0.5", room)


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'pitome'") as caught:
        compose("pitone", VIT, True, "0.5")
    assert str(caught.value).startswith("--method: ")


@pytest.mark.parametrize("method", ["tome", "mctf", "pitome", "pyra"])
def test_what_late_blocks_cannot_halve_leaves_earlier(method: str) -> None:
    shape = Shape(577, 1, 576, 6)
    made = compose(method, shape, True, "0.02")
    assert made.final == 12
    counts = [576, *(r.keep for r in made.reductions)]
    assert all(2 * b >= a for a, b in pairwise(counts))
    with pytest.raises(UsageError, match="at best"):
        compose(method, shape, True, "0.01")


def test_a_head_is_found_wherever_the_schedule_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("head.npz").touch()
    (step,) = compose("tnt:head=head.npz", VIT, True, "0.5").reductions
    assert step.score is not None
    assert step.score.parameters == {"file": str(tmp_path / "head.npz")}


def test_tome_as_released() -> None:
    made = compose("tome:parity=reference,prop_attn=false", VIT, True, "0.5").reductions
    wanted = {"prop_attn": False, "parity": "reference"}
    assert {str(r.reducer.parameters) for r in made} == {str(wanted)}


def test_scores_of_blocks_before_need_one() -> None:
    made = compose("evo-vit", Shape(65, 1, 64, 2), True, "0.5")
    assert [r.site for r in made.reductions] == ["around:1"]
    with pytest.raises(UsageError, match="no block of this model can be bypassed"):
        compose("evo-vit", Shape(65, 1, 64, 1), True, "0.5")


@pytest.mark.parametrize("preset", OF_IMAGES, ids=lambda m: m.name)
def test_a_model_of_one_patch_loses_none(preset: Preset) -> None:
    made = compose(text(preset.name), Shape(2, 1, 1, 4), True, "0.5")
    assert made.reductions == ()
