"""The optimiser's tables of a model say what the parts of the reduced graph take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.planning.optimise.tables import Tables, plan_of
from tcompile.planning.options.method_tables import counts_for, method_tables, tables_for
from tcompile.profiling.curve import Curve
from tcompile.profiling.profile import Profile
from tcompile.profiling.structure import layout_of
from tests.support.planted import STEM, Planted, figure, looked_up, method, model
from tests.support.tiny_vit import VitSpec

PLANTED = Planted()
#: Of 65 tokens; counts are then every eighth and the ends of stairs.
LARGE = VitSpec(image=64, depth=2)


def no_loss(site: str, before: Any, after: Any) -> float:
    return 0.0


def all_tables(given: Any, one: Method, profile: Profile) -> Tables:
    shape = given.analysis.shape
    counts = range(shape.prefix + 1, shape.tokens + 1)
    return tables_for(profile, layout_of(given.graph, one), one, no_loss, counts)


def uneven(profile: Profile) -> Profile:
    """Other figures for every structure and count, so that no two can be mixed up."""
    rng = np.random.default_rng(1)

    def other(curves: Any) -> dict[str, Curve]:
        return {
            sign: Curve.of((n, figure(float(rng.random()))) for n in curve.counts)
            for sign, curve in curves.items()
        }

    return replace(profile, halves=other(profile.halves), heads=other(profile.heads))


@pytest.mark.parametrize("name", ["topk", "evit", "tome", "as-vit", "visionzip"])
@pytest.mark.parametrize(
    "spec", [VitSpec(), VitSpec(pool="none", prefix=3), VitSpec(pool="avg")], ids=lambda s: s.pool
)
def test_a_plan_takes_what_its_graph_does(name: str, spec: VitSpec) -> None:
    given, rng = model(spec), np.random.default_rng(0)
    one = method(given, name)
    profile = PLANTED.profile(given, [one])
    # What makes a bias of sizes lies in a reducer or in the half behind it, as blocks share it or
    # not, so that halves behind merging are of more structures than a profile has.
    profile = profile if name == "tome" else uneven(profile)

    def takes(places: list[Place]) -> float:
        made = one.schedule(places)
        return (
            PLANTED.latency(given, made)
            if name == "tome"
            else looked_up(given, made, profile, one.key)
        )

    tables = all_tables(given, one, profile)
    shape = given.analysis.shape
    for _ in range(6):
        count, after, places = shape.patches, [], list[Place]()
        for rule in one.sites:
            least = max(rule.least - shape.prefix, -(-count // 2))
            if least < count and rng.random() < 0.7:
                count = int(rng.integers(least, count))
                places.append(Place(rule.name, count))
            after.append(count + shape.prefix)
        assert plan_of(tables, after).latency_ms == pytest.approx(takes(places), rel=1e-9)
    assert tables.dense_ms == pytest.approx(takes([]), rel=1e-9)


def test_the_whole_corrects_its_parts() -> None:
    """The dense model took 0.8 of what its parts did: so will every plan, the stem and steps of
    which were not among what was added up."""
    given = model()
    one = method(given, "topk")
    planted = Planted(whole=0.8)
    tables = all_tables(given, one, planted.profile(given, [one], dense=True))
    plain = all_tables(given, one, planted.profile(given, [one]))
    whole = 0.8 * planted.dense(given)
    assert tables.dense_ms == pytest.approx(whole)
    scale = (whole - STEM) / (planted.dense(given) - STEM)
    for name in ("attn_ms", "mlp_ms", "head_ms"):
        np.testing.assert_allclose(getattr(tables, name), scale * getattr(plain, name))
    assert tables.stem_ms == STEM
    for mine, other in zip(tables.reducer_ms, plain.reducer_ms, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_whole_that_cannot_be_corrects_by_half_at_most() -> None:
    given = model()
    one = method(given, "topk")
    planted = Planted(whole=0.001)
    tables = all_tables(given, one, planted.profile(given, [one], dense=True))
    parts = planted.dense(given) - STEM
    assert tables.dense_ms == pytest.approx(STEM + parts / 2)


@pytest.mark.parametrize("what", ["halves", "heads", "stem", "reducers"])
def test_what_the_profile_lacks_is_said_before_losses_are_measured(what: str) -> None:
    given = model()
    one = method(given, "tome:r=3")
    profile = replace(PLANTED.profile(given, [one]), **{what: {}})

    def losses_of(_: Method) -> Any:
        raise AssertionError("measured in vain")

    with pytest.raises(UsageError, match="does not have") as error:
        method_tables(given.graph, one, profile, losses_of, least=None, eps=0.01)
    assert "`tcompile profile" in str(error.value)
    assert ("--method tome:r=3" in str(error.value)) == (what == "reducers")
    assert "vit.onnx" in error.value.what


def test_counts_are_aligned_or_at_the_end_of_a_step() -> None:
    given = model(LARGE)
    one = method(given, "topk")
    planted = Planted(tile=11)
    layout = layout_of(given.graph, one)
    counts = counts_for(planted.profile(given, [one]), layout, one, eps=0.001)
    # Of the head, a line, each count is a step of its own: take it away.
    flat = replace(
        planted.profile(given, [one]),
        heads={
            k: Curve.of([(c.counts[0], figure(1.0)), (65, figure(1.0))])
            for k, c in planted.profile(given, [one]).heads.items()
        },
    )
    counts = counts_for(flat, layout, one, eps=0.001)
    first = one.sites[0].least
    steps = {c for c in range(first, 66) if c % 8 == 0 or c % 11 == 0} | {65}
    assert set(counts) == steps
    assert set(counts_for(flat, layout, one, eps=0.001, least=30)) == steps | {30}
    assert 65 in counts_for(flat, layout, one, least=65)


def test_small_models_have_all_counts() -> None:
    given = model()
    one = method(given, "topk")
    counts = counts_for(PLANTED.profile(given, [one]), layout_of(given.graph, one), one)
    assert counts == tuple(range(one.sites[0].least, 18))
