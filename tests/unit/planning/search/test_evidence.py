"""Plans rest on images: scenes where a person gives none; what was run once is not run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.schedule import Schedule
from tcompile.pipeline import read
from tcompile.planning.losses.evaluate import Evaluator
from tcompile.planning.request import Request
from tcompile.planning.search import evidence
from tcompile.planning.search.evidence import evidence_for
from tcompile.planning.search.level import LEVELS
from tests.support.planted import Planted, method
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(depth=4)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", SPEC)


def test_scenes_where_there_are_no_images(model: Path, tmp_path: Path) -> None:
    given = read(model)
    found = evidence_for(given, Request(keep=0.5))
    assert found is not None
    assert found.fit.samples.source.startswith("32 procedural scenes (seed 1; normalised as")
    assert (len(found.fit), found.check, found.level.name) == (32, None, "fine")
    assert evidence_for(given, Request(keep=0.5, calibration="none")) is None
    coarse = evidence_for(given, Request(keep=0.5, calibration_level="coarse"))
    assert coarse is not None
    assert (len(coarse.fit), coarse.level.look) == (12, 2)
    images = tmp_path / "images.npz"
    np.savez(images, image=np.zeros((12, 3, 32, 32), np.float32))
    own = evidence_for(given, Request(keep=0.5, calibration=images))
    bound = evidence_for(given, Request(max_drop=0.5, calibration=images))
    assert own is not None
    assert bound is not None
    assert own.check is not None
    assert bound.check is not None
    # A handful is filled up with scenes to plan with; none of these is checked on.
    assert (len(own.fit), len(own.check)) == (32, 3)
    assert (len(bound.fit), len(bound.check)) == (32, 6)
    planned_with = own.fit.samples.arrays["image"]
    assert not planned_with[:9].any()
    assert np.array_equal(planned_with[9:], found.fit.samples.arrays["image"][:23])
    assert "9 of 12 samples" in own.fit.samples.source
    assert "and 23 procedural scenes (seed 1" in own.fit.samples.source
    few = evidence_for(given, Request(keep=0.5, calibration=images, images=4))
    assert few is not None
    assert len(few.fit) == 4


def test_a_level_is_by_the_work_for_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(evidence, "level_for", lambda flops: seen.append(flops) or LEVELS["coarse"])
    for batch in (1, 4):
        path = save_tiny_vit(tmp_path / f"{batch}.onnx", SPEC, batch=batch)
        evidence_for(read(path), Request(keep=0.5))
    assert seen[0] == seen[1] > 0


def test_a_plan_says_what_it_rests_on(model: Path) -> None:
    priced = pipeline.price(model, keep=0.5, profile="model", calibration_level="coarse")
    planned = priced.planned
    assert planned is not None
    assert "measured on 12 procedural scenes (seed 1" in planned.losses
    assert "your own images say more" in planned.losses
    assert len({t.method for t in planned.tried}) > 1
    assert "resolution" in {t.method for t in planned.tried}
    assert priced.schedule.resized is None  # a share of tokens was asked for
    assert priced.schedule.final == 8
    document = planned.to_json()
    assert document["steps"][0]["loss"] is None
    assert (document["calibration"]["images"], document["calibration"]["level"]) == (12, "coarse")


def test_nothing_runs_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = read(model)
    profile = Planted().profile(given, [method(given, n) for n in ("tome", "topk", "evit")])

    def plan() -> object:
        return pipeline.plan(model, keep=0.5, profile=profile, calibration_level="coarse")

    first = plan()

    def refuse(*_: object, **__: object) -> Evaluator:
        raise AssertionError("the dense model is run again")

    monkeypatch.setattr(evidence, "Evaluator", refuse)
    assert plan() == first


def test_what_a_given_profile_lacks_is_not_weighed(model: Path) -> None:
    given = read(model)
    profile = Planted().profile(given, [method(given, "topk")])
    asked = pipeline.price(model, keep=0.5, profile=profile, calibration_level="coarse")
    assert asked.planned is not None
    assert {t.method for t in asked.planned.tried} <= {"topk", "resolution"}


def test_a_smaller_image_is_taken_where_it_loses_less(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read(model)
    planted = Planted()
    profile = planted.profile(given, [method(given, n) for n in ("tome", "topk")])
    budget = 0.8 * planted.dense(given)
    asked = {"latency": budget, "profile": profile, "calibration_level": "coarse"}
    losses = evidence.Runs.losses

    def worse(self: evidence.Runs, schedule: object, images: int) -> object:
        return 1000 + losses(self, schedule, images)  # type: ignore[arg-type]

    monkeypatch.setattr(evidence.Runs, "losses", worse)
    taken = pipeline.price(model, **asked)  # type: ignore[arg-type]
    assert taken.schedule.resized is not None
    assert taken.planned is not None
    assert taken.planned.outcome.emitted == "reduced"
    assert taken.planned.plan.latency_ms <= budget
    assert any("a smaller image loses less" in note for note in taken.schedule.notes)
    named = pipeline.price(model, **{**asked, "method": "tome"})  # type: ignore[arg-type]
    assert named.schedule.resized is None


def test_seeds_and_images_change_what_is_run(model: Path) -> None:
    given = read(model)
    one, other = (evidence_for(given, Request(keep=0.5, seed=s)) for s in (0, 1))
    assert one is not None
    assert other is not None
    assert one.fit.digest != other.fit.digest
    few = evidence_for(given, Request(keep=0.5, images=3))
    assert few is not None
    assert few.level == replace(one.level, images=3, look=3, last=3)


def test_dims_are_those_that_were_bound(tmp_path: Path) -> None:
    spec = VitSpec(depth=2)
    path = save_tiny_vit(tmp_path / "free.onnx", spec)
    found = onnx.load(path)
    for axis in (2, 3):
        found.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size_{axis}"
    onnx.save(found, path)
    given = read(path, shapes={"image": [1, 3, 32, 32]})
    drawn = evidence_for(given, Request(keep=0.5, images=2))
    assert drawn is not None
    assert drawn.fit.samples.arrays["image"].shape[1:] == (3, 32, 32)


def test_a_model_that_no_scene_suits_is_planned_by_the_prior(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Evaluator:
        raise RuntimeError("index out of range")

    monkeypatch.setattr(evidence, "Evaluator", fails)
    asked = {"keep": 0.5, "profile": "model"}
    planned = pipeline.price(model, **asked).planned  # type: ignore[arg-type]
    assert planned is not None
    assert "prior" in planned.losses
    assert any("index out of range; give images" in note for note in planned.schedule.notes)
    images = model.with_name("images.npz")
    np.savez(images, image=np.zeros((4, 3, 32, 32), np.float32))
    with pytest.raises(RuntimeError):  # a person's own images are no guess of ours
        pipeline.price(model, calibration=images, **asked)  # type: ignore[arg-type]


def test_losses_that_are_no_numbers_are_the_worst(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read(model)
    found = evidence_for(given, Request(keep=0.5, images=2))
    assert found is not None
    runs = evidence.Runs(given, Request(keep=0.5), found, print)
    monkeypatch.setattr(Evaluator, "losses", lambda *_: np.array([np.nan, 0.1]))
    schedule = method(given, "topk").single_step(method(given, "topk").sites[0], 9)
    assert runs.losses(schedule, 2).tolist() == [2.0, 0.1]
    runs.save()
    again = evidence.Runs(given, Request(keep=0.5), found, print)
    assert again.known == runs.known


def test_a_method_that_fails_is_left_out_and_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Evaluator.losses

    def fails(self: Evaluator, schedule: Schedule, rows: int | None = None) -> object:
        if schedule.method == "tome":
            raise RuntimeError("no such kernel")
        return losses(self, schedule, rows)

    monkeypatch.setattr(Evaluator, "losses", fails)
    made = pipeline.plan(model, keep=0.5, profile="model", calibration_level="coarse")
    assert "tome" not in made.method.split(" + ")
    assert "could not be run on the images: tome: no such kernel" in made.notes
