"""`--max-drop`: the fastest plan of the front that is seen to keep to it."""

from __future__ import annotations

from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.passes.stages import Analysed
from tcompile.planning.losses.data import read_calibration, split
from tcompile.planning.losses.drop import Drop, images_needed
from tcompile.planning.optimise.prior import prior_loss
from tcompile.planning.optimise.solver import front
from tcompile.planning.options.budgets import Budget, limits_of
from tcompile.planning.options.method_tables import Losses, MethodTables, method_tables
from tcompile.planning.solve import solve
from tcompile.planning.solve.on_images import CONFIDENCE, by_loss, fastest_within
from tests.support.onnx_models import to_onnx
from tests.support.planted import Planted, method, model
from tests.support.tiny_vit import VitSpec

PLANTED = Planted()
ANY = Budget(None, None, 0.02, 0.02)


def an_option(given: Analysed, name: str, lost: float = 1.0, family: str = "prune") -> MethodTables:
    one, shape = method(given, name), given.analysis.shape
    prior = prior_loss(family, tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks)

    def losses(of: Any) -> Losses:
        return lambda s, n, k: lost * prior(s, n, k), "planted"

    profile = PLANTED.profile(given, [one])
    return method_tables(given.graph, one, profile, losses, least=None, eps=0.02)


class Images:
    labels = None

    def __len__(self) -> int:
        return 10


class FakeTrial:
    """Drops that follow a plan's loss, in place of running anything; notes what was tried.

    A plan is recognised by its schedule.
    """

    def __init__(self) -> None:
        self.images, self.drops = Images(), dict[str, float]()
        self.tried, self.confidence = list[float](), set[float]()

    def say(self, text: str) -> None:
        pass

    def drop(self, schedule: Schedule, confidence: float) -> Drop:
        upper = self.drops[str(schedule)]
        self.tried.append(upper)
        self.confidence.add(confidence)
        return Drop("top-1 disagreement with dense", upper / 2, upper, 10, confidence, True)

    def dense_drop(self, most: float, confidence: float) -> None:
        """In fp32 the dense model loses nothing."""


def planted_drops(
    trial: FakeTrial, options: list[MethodTables], drop: Any
) -> list[tuple[float, float, Schedule]]:
    """(ms, drop, schedule) of all plans of the fronts that are faster than dense."""
    found = []
    for one in options:
        for plan in front(one.tables, limits_of(one, ANY), points=40):
            if plan.steps and plan.latency_ms < 0.98 * plan.dense_ms:
                schedule = one.schedule(plan)
                trial.drops[str(schedule)] = drop(plan.loss)
                found.append((plan.latency_ms, drop(plan.loss), schedule))
    return found


@pytest.mark.parametrize("most", [0.001, 0.02, 0.05, 0.1, 0.3, 0.6, 0.99])
def test_the_fastest_that_keeps_to_it(most: float) -> None:
    """Drops that rise with the loss: bisection then finds what looking at all would."""
    trial = FakeTrial()
    options = [an_option(model(), "topk"), an_option(model(), "evit", 0.7)]
    known = planted_drops(trial, options, lambda loss: loss / (3 + loss))
    choice, drop = fastest_within(by_loss(options, ANY), options[0], ANY, most, trial)  # type: ignore[arg-type]
    fits = [k for k in known if k[1] <= most]
    # Of as many plans as none beats, a bisection runs so many.
    most_tries = ceil(log2(len(by_loss(options, ANY)) + 1))
    assert len(trial.tried) <= most_tries < len(known)
    assert trial.confidence == {1 - (1 - CONFIDENCE) / most_tries}
    if not fits:
        assert choice.plan.steps == ()
        assert choice.reason == "drop"
        assert "no plan was seen to lose at most" in choice.why
        assert drop is not None
        assert drop.upper == min(trial.tried)
        return
    assert choice.plan.latency_ms == pytest.approx(min(k[0] for k in fits))
    assert drop is not None
    assert drop.upper <= most


def test_plans_that_others_beat_are_not_among_them() -> None:
    """Two methods, one of which loses more at late sites and less at early ones."""
    options = [an_option(model(), "topk"), an_option(model(), "evit", 2.0, "output")]
    all_plans = [
        (p.loss, p.latency_ms)
        for one in options
        for p in front(one.tables, limits_of(one, ANY), points=40)
        if p.steps and p.latency_ms < 0.98 * p.dense_ms
    ]
    best = [
        a for a in all_plans if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in all_plans)
    ]
    found = by_loss(options, ANY)
    assert {c.option.method.text for c in found} == {"topk", "evit"}
    assert [(c.plan.loss, c.plan.latency_ms) for c in found] == sorted(best)
    assert len(best) < len(all_plans)


def test_what_it_would_take_is_said() -> None:
    trial = FakeTrial()
    one = an_option(model(), "topk")
    planted_drops(trial, [one], lambda loss: 0.5)
    choice, _ = fastest_within(by_loss([one], ANY), one, ANY, 0.01, trial)  # type: ignore[arg-type]
    need = images_needed(0.01, *trial.confidence)
    said = choice.why
    assert f"{need} images to check on are needed" in said
    assert "lost 25.00%" in said
    assert "10 images" in said


def test_with_latency_besides() -> None:
    trial = FakeTrial()
    one = an_option(model(), "topk")
    dense = PLANTED.dense(model())
    known = planted_drops(trial, [one], lambda loss: loss / (3 + loss))
    budget = Budget(None, 0.8 * dense, 0.02, 0.02)
    choice, _ = fastest_within(by_loss([one], budget), one, budget, 0.6, trial)  # type: ignore[arg-type]
    assert choice.plan.latency_ms <= 0.8 * dense
    assert choice.plan.latency_ms == pytest.approx(min(k[0] for k in known if k[1] <= 0.6))
    for most, ms, words in ((0.001, 0.8 * dense, "within"), (0.6, 1.0, "no plan takes 1 ms")):
        with pytest.raises(UsageError, match=words):
            fastest_within(
                by_loss([one], Budget(None, ms, 0.02, 0.02)),
                one,
                Budget(None, ms, 0.02, 0.02),
                most,
                trial,
            )  # type: ignore[arg-type]


def test_tokens_bound_it() -> None:
    trial = FakeTrial()
    one = an_option(model(), "topk")
    planted_drops(trial, [one], lambda loss: 0.0)
    bounded = Budget(9, None, 0.02, 0.02)
    for plan in front(one.tables, limits_of(one, bounded), points=40):
        trial.drops[str(one.schedule(plan))] = 0.0
    choice, _ = fastest_within(by_loss([one], bounded), one, bounded, 0.1, trial)  # type: ignore[arg-type]
    assert 9 <= choice.plan.final < 17
    planted_drops(trial, [one], lambda loss: 0.9)
    for plan in front(one.tables, limits_of(one, bounded), points=40):
        trial.drops[str(one.schedule(plan))] = 0.9
    with pytest.raises(UsageError, match="with 8 patch tokens kept"):
        fastest_within(by_loss([one], bounded), one, bounded, 0.1, trial)  # type: ignore[arg-type]


def test_where_nothing_is_faster_nothing_is_run() -> None:
    trial = FakeTrial()
    given, one = model(), method(model(), "topk")
    slow = Planted(launch=500.0).profile(given, [one])

    def losses(of: Any) -> Losses:
        return lambda s, n, k: 1.0, "planted"

    made = method_tables(given.graph, one, slow, losses, least=None, eps=0.02)
    choice, drop = fastest_within(by_loss([made], ANY), made, ANY, 0.5, trial)  # type: ignore[arg-type]
    assert (choice.plan.steps, drop) == ((), None)
    assert choice.reason == "drop"
    assert trial.tried == []
    assert "no plan is predicted to be faster than the dense model" in choice.why


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise, which a tiny random model calls what it likes."""
    path = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, image=rng.standard_normal((40, 3, 32, 32)).astype(np.float32))
    return path


def test_on_real_images_through_the_api(images: Path) -> None:
    """The drop that is reported is that of both models run again; the images planned with are
    not among those it is said of."""
    from tcompile.targets.backends.ort import OrtRunner

    spec = VitSpec(depth=2)
    given = model(spec)
    profile = PLANTED.profile(given, [method(given, "topk")])
    asked: dict[str, Any] = {"method": "topk", "calibration": images, "profile": profile}
    priced = pipeline.price(given.source, max_drop=0.6, images=4, **asked)
    planned = priced.planned
    assert planned is not None
    assert planned.drop is not None
    assert planned.schedule.reductions
    _, check = split(read_calibration(given.source, images), 0, bound=True)
    assert planned.drop.images == len(check) == 20
    path = images.with_name("reduced.onnx")
    import onnx

    reduced = pipeline.reduce(given.source, schedule=planned.schedule)
    onnx.save(to_onnx(reduced.graph), str(path))
    x = check.samples.arrays
    answers = [
        np.concatenate(
            [next(iter(OrtRunner(p).run({"image": row[None]}).values())) for row in x["image"]]
        ).argmax(1)
        for p in (Path(given.source), path)
    ]
    assert planned.drop.mean == float((answers[0] != answers[1]).mean())
    assert planned.drop.upper <= 0.6
    assert "on 4 of 40 samples" in planned.losses
    declined = pipeline.price(given.source, max_drop=0.12, images=4, **asked).planned
    assert declined is not None
    assert declined.schedule.reductions == ()
    assert "images to check on" in declined.outcome.why
    assert (declined.outcome.emitted, declined.outcome.reason) == ("dense", "drop")
    assert declined.drop is not None


def test_images_that_can_never_show_it_are_refused_at_once(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "profile_for", None)  # nothing is measured
    given = model(VitSpec(depth=2))
    asked: dict[str, Any] = {"method": "topk", "calibration": images, "profile": "measure"}
    with pytest.raises(
        UsageError, match=r"20 images to check on cannot show .* 5\.00%.* 45 are needed .*give 90"
    ):
        pipeline.plan(given.source, max_drop=0.05, **asked)
    with np.load(images) as stored:
        np.savez(images, image=stored["image"], labels=np.zeros(40, int))
    said: list[str] = []
    with pytest.raises(TypeError):  # goes on, and would measure
        pipeline.plan(given.source, max_drop=0.05, progress=said.append, **asked)
    assert any("unless the reduced model is right" in line for line in said)


def test_data_is_read_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "profile_for", None)
    given = model(VitSpec(depth=2))
    (tmp_path / "x.npz").write_text("nothing")
    with pytest.raises(UsageError, match="cannot be read as"):
        pipeline.plan(given.source, latency=1.0, method="topk", calibration=tmp_path / "x.npz")
