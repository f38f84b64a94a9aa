"""Sites and counts that a preset's steps may have: the planner relies on them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteRule
from tcompile.methods.method import Method, method_for
from tcompile.methods.schedulers import Place
from tcompile.models.onnx_vit import GraphWriter
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.constraints import site_constraints
from tests.support.grid_vit import GridVit, grid_vit, grid_weights
from tests.support.planted import method, model
from tests.support.preset_models import video_vit
from tests.support.tiny_vit import VitSpec, random_weights

#: 15 and 25 patches are odd; what merges in pairs then keeps the larger half.
SPECS = (VitSpec(), VitSpec(image=40, prefix=3, depth=4), VitSpec(image=24, prefix=0, pool="avg"))
PRESETS = (
    "topk",
    "evit",
    "tome",
    "pitome",
    "tofu",
    "mctf",
    "as-vit",
    "ats",
    "algm",
    "visionzip",
    "fastervlm",
    "random",
    "fitprune",
    "topk:site=output",
)
#: Their parameters at a step follow from its count, so that rules, which are asked of one of them,
#: may be narrower than need be. Never wider.
OF_THEIR_OWN = ("algm", "visionzip")


def allowed(rule: SiteRule, patches: int, prefix: int, keep: int) -> bool:
    """Return whether a rule allows a first step to so many patches."""
    most = patches if rule.most_dropped is None else rule.most_dropped * patches + 1e-9
    return (
        keep < patches
        and keep % rule.granularity == 0
        and prefix + keep >= rule.least
        and patches - keep <= most
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.patches}+{s.prefix}")
@pytest.mark.parametrize("name", PRESETS)
def test_rules_allow_what_the_checks_let_through(name: str, spec: VitSpec) -> None:
    """All first steps of a method, at all sites of its kinds, by asking for each."""
    given = model(spec)
    try:
        one = method(given, name)
    except UsageError as error:
        # Windows of algm need an even grid; some scores need CLS.
        assert name == "algm" or spec.prefix == 0, error  # noqa: PT017
        return
    shape, rules = given.analysis.shape, {r.name: r for r in one.sites}
    kinds = {s.partition(":")[0] for s in rules}
    for site in (s for s in given.analysis.sites if s.kind in kinds):
        for keep in range(1, shape.patches):
            rule = rules.get(site.name)
            said = rule is not None and allowed(rule, shape.patches, shape.prefix, keep)
            lets = _lets(one, site.name, keep)
            assert said == lets or (lets and name in OF_THEIR_OWN), (site.name, keep)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.patches}+{s.prefix}")
@pytest.mark.parametrize("name", ["topk", "evit", "tome", "tofu", "mctf", "as-vit", "visionzip"])
def test_any_descent_by_the_rules_can_be_built(name: str, spec: VitSpec) -> None:
    given, rng = model(spec), np.random.default_rng(0)
    one = method(given, name)
    for _ in range(40):
        count, places = one.context.shape.patches, []
        for rule in one.sites:
            can = [k for k in range(1, count) if allowed(rule, count, one.context.shape.prefix, k)]
            if can and rng.random() < 0.6:
                count = int(rng.choice(can))
                places.append(Place(rule.name, count))
        made = one.schedule(places, ["why"])
        assert [(r.site, r.keep) for r in made.reductions] == [(p.site, p.keep) for p in places]
        assert made.notes[0] == "why"


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.patches}+{s.prefix}")
@pytest.mark.parametrize("name", ["topk", "evit", "tome", "as-vit", "visionzip"])
def test_descend_comes_down_in_the_fewest_steps(name: str, spec: VitSpec) -> None:
    if spec.prefix == 0 and name in ("evit", "visionzip"):
        pytest.skip("scores by CLS")
    one = method(model(spec), name)
    patches, first = one.context.shape.patches, one.sites[0]
    least = first.least - one.context.shape.prefix
    for keep in range(least, patches):
        halves, count = 0, patches
        while count > keep and halves < len(one.sites):
            share = first.most_dropped
            count = max(keep, count - (int(share * count + 1e-9) if share else count))
            halves += 1
        if count > keep + 1:
            with pytest.raises(UsageError, match=f"cannot come down to {keep} tokens"):
                one.descend(keep)
            continue
        places = one.descend(keep)
        assert places[-1].keep == count
        assert [p.site for p in places] == [r.name for r in one.sites[:halves]]
        assert all(a.keep > b.keep for a, b in pairwise(places))
        one.schedule(places)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bypass", "tokens come back"),
        ("tomesd", "tokens come back"),
        ("idlevit", "tokens come back"),
        ("atme", "some token counts only"),
        ("diffrate", "some token counts only"),
        ("zero-tprune", "some token counts only"),
        ("llava-zip", "places and counts of its own"),
    ],
)
def test_what_cannot_be_planned_is_said(name: str, why: str) -> None:
    with pytest.raises(UsageError, match="cannot be planned") as error:
        method(model(), name)
    assert why in error.value.what
    assert "with --keep R" in str(error.value)
    assert "\n" not in error.value.one_line()


def test_without_a_site_it_says_why() -> None:
    """`evit` leaves a fused token, which restored outputs could not give back by position."""
    with pytest.raises(UsageError, match="needs the frames of a video"):
        method(model(), "dycoke")
    with pytest.raises(UsageError, match="did you mean 'tome'"):
        method(model(), "tomme")


def test_the_key_is_what_costs_depend_on() -> None:
    given = model()
    for text, key in {
        "topk": "topk",
        "topk:block=1": "topk",
        "topk:block=1,site=block": "topk",
        "tome:r=3": "tome",
        "evit:rate=0.5": "evit",
        "random": "random",
        "random:seed=3": "random:seed=3",
    }.items():
        assert method(given, text).key == key, text


def saved(found: onnx.ModelProto, path: Path) -> Analysed:
    onnx.save(found, str(path))
    return read(path)


@pytest.mark.parametrize("name", ["topk", "tome"])
def test_segments_lose_as_many_tokens_each(name: str, tmp_path: Path) -> None:
    spec = VitSpec(image=64, patch=8, depth=2, prefix=0, pool="none")
    given = saved(video_vit(spec, random_weights(spec)), tmp_path / "video.onnx")
    room = site_constraints(given.analysis)
    try:
        one = method_for(given.analysis, room, name)
    except UsageError as error:
        assert name != "topk", error  # noqa: PT017
        return
    shape = given.analysis.shape
    for rule in one.sites:
        for keep in range(1, shape.patches):
            assert allowed(rule, shape.patches, shape.prefix, keep) == _lets(one, rule.name, keep)


def grouped_vit(spec: VitSpec) -> onnx.ModelProto:
    """A ViT whose head joins 2 x 2 patches, as mergers do."""
    weights = random_weights(spec)
    writer = GraphWriter(weights)
    embedded = writer.op(
        "Conv",
        "image",
        writer.weight("patch_embed.proj.weight"),
        writer.weight("patch_embed.proj.bias"),
        kernel_shape=[spec.patch] * 2,
        strides=[spec.patch] * 2,
    )
    flat = writer.op("Reshape", embedded, writer.const([0, spec.width, spec.patches]))
    x = writer.op("Transpose", flat, perm=[0, 2, 1])
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    x = writer.layer_norm(x, "norm")
    half = spec.image // spec.patch // 2
    x = writer.op("Reshape", x, writer.const([1, half, 2, half, 2, spec.width]))
    x = writer.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
    x = writer.op("Reshape", x, writer.const([1, half * half, 4 * spec.width]))
    writer.initializers["merge"] = (
        np.random.default_rng(0).standard_normal((4 * spec.width, 8)).astype(np.float32)
    )
    tokens = (writer.op("MatMul", x, "merge"), [1, half * half, 8])
    return writer.model(spec.image, {"tokens": tokens})


def test_whole_groups_leave(tmp_path: Path) -> None:
    """Behind a merger of four, tokens leave in fours."""
    spec = VitSpec(image=48, prefix=0, pool="none", depth=2)
    given = saved(grouped_vit(spec), tmp_path / "groups.onnx")
    one = method(given, "topk")
    shape, rule = given.analysis.shape, one.sites[0]
    assert (shape.patches, {r.granularity for r in one.sites}) == (36, {4})
    for keep in range(1, shape.patches):
        assert allowed(rule, shape.patches, shape.prefix, keep) == _lets(one, rule.name, keep)
    for keep, reached in ((13, 16), (12, 12), (3, 4)):
        assert one.descend(keep) == [Place(rule.name, reached)]
    with pytest.raises(UsageError, match="whole groups of 4"):
        method(given, "tome")


def test_an_oblong_grid(tmp_path: Path) -> None:
    spec = GridVit(rows=3, columns=5, depth=2)
    given = saved(grid_vit(spec, grid_weights(spec), batch=1), tmp_path / "grid.onnx")
    one = method(given, "tome")
    assert [r.most_dropped for r in one.sites] == [7 / 15] * 2
    assert [_lets(one, "attn:0", k) for k in (7, 8)] == [False, True]


def _lets(given: Method, site: str, keep: int) -> bool:
    try:
        made = given.schedule([Place(site, keep)]).reductions
    except UsageError:
        return False
    # A count that is not a whole number of groups is rounded up.
    return [r.keep for r in made] == [keep]


def test_schedules_are_checked() -> None:
    one: Any = method(model(), "topk")
    with pytest.raises(UsageError, match="out of order"):
        one.schedule([Place("attn:1", 8), Place("attn:0", 4)])


@pytest.mark.parametrize("name", ["evit", "topk"])
def test_a_score_that_stands_in_is_said(name: str) -> None:
    """Notes of a solved schedule are those of the method's own."""
    for spec, said in ((VitSpec(), False), (VitSpec(prefix=0, pool="avg"), True)):
        made = method(model(spec), name).schedule([Place("attn:0", 8)], ["why"])
        assert any("stands in for cls" in note for note in made.notes) is said
