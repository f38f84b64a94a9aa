"""`--objective pomt` against POMT's formula in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.methods.schedulers import Place
from tcompile.planning.losses.data import read_calibration, split
from tcompile.planning.options.method_tables import MethodTables, counts_for, tables_for
from tcompile.planning.solve.on_images import (
    SHARES,
    accuracies,
    most_useful,
    pomt_plan,
    whole_latency,
)
from tcompile.profiling.structure import layout_of
from tcompile.targets.backends.ort import OrtRunner
from tests.support.onnx_models import to_onnx
from tests.support.planted import STEM, Planted, method, model
from tests.support.tiny_vit import VitSpec

DEEP = VitSpec(depth=5)
PLANTED = Planted(tile=4, rise=1.0)


def an_option(name: str = "pomt", spec: VitSpec = DEEP) -> MethodTables:
    given = model(spec)
    one = method(given, name)
    profile, layout = PLANTED.profile(given, [one]), layout_of(given.graph, one)
    counts = counts_for(profile, layout, one)
    tables = tables_for(profile, layout, one, lambda s, n, k: 0.0, counts)
    return MethodTables(one, tables, "none")


def latency(tokens: int, blocks: int) -> float:
    """L(n): all parts with n tokens."""
    halves = PLANTED.half("attn", tokens) + PLANTED.half("mlp", tokens)
    return STEM + blocks * halves + PLANTED.head(tokens)


def chosen(counts: Any, ms: Any, good: Any) -> int:
    """argmax of α(1 − L/max L) + (1 − α) A/max A with α = 1/2, the largest n of equals."""
    ms, good = np.asarray(ms), np.asarray(good)
    utility = 0.5 * (1 - ms / ms.max()) + 0.5 * good / good.max()
    return max(n for n, u in zip(counts, utility, strict=True) if u == utility.max())


class FakeTrial:
    """Answers made by hand, in place of running anything."""

    def __init__(self, dense: Any, run: Callable[[Schedule], Any], labels: Any = None) -> None:
        self.dense, self.run, self.images = dense, run, SimpleNamespace(labels=labels)


@pytest.mark.parametrize("fall", [0.3, 1.0, 4.0])
def test_utility_is_the_formula(fall: float) -> None:
    """Answers that get worse in a planted way as tokens leave."""
    one = an_option()
    random = method(model(DEEP), "random:seed=0")
    asked: list[int] = []

    def answers(left: float) -> dict[str, Any]:
        """100 images; a share of them is answered otherwise than by the dense model."""
        wrong = round(100 * (1 - left**fall))
        return {"logits": np.eye(10)[[1] * wrong + [0] * (100 - wrong)]}

    def run(schedule: Schedule) -> dict[str, Any]:
        asked.append(schedule.final)
        (step,) = schedule.reductions
        score = Spec("static", {"pattern": "random", "seed": 0})
        assert (step.site, step.score) == ("attn:0", score)
        return answers(schedule.final / 16)

    measured = accuracies(random, FakeTrial(answers(1.0), run))  # type: ignore[arg-type]
    found = most_useful(one.tables.counts, whole_latency(one.tables), measured)
    keeps = sorted({max(round(s * 16), 1) for s in SHARES})
    assert sorted(asked) == keeps
    known = {k + 1: 1 - round(100 * (1 - (k / 16) ** fall)) / 100 for k in keeps} | {17: 1.0}
    counts = [n for n in one.tables.counts if n >= min(known)]
    good = np.interp(counts, sorted(known), [known[n] for n in sorted(known)])
    ms = [latency(n, 5) for n in counts]
    assert measured == pytest.approx(known)
    assert found == chosen(counts, ms, good)


def test_labels_say_what_is_right() -> None:
    dense, other = ({"logits": np.eye(5)[row]} for row in ([0, 1, 0, 0], [0, 1, 2, 3]))
    trial = FakeTrial(dense, lambda _: other, np.array([0, 1, 2, 3]))
    found = accuracies(method(model(DEEP), "random"), trial)  # type: ignore[arg-type]
    assert found.pop(17) == 0.5
    assert set(found.values()) == {1.0}


def test_outputs_without_classes_are_compared_by_angle() -> None:
    turned = {"features": np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)}
    dense = {"features": np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)}
    trial = FakeTrial(dense, lambda _: turned)
    found = accuracies(method(model(DEEP), "random"), trial)  # type: ignore[arg-type]
    assert found[2] == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize(("name", "site"), [("pomt", "attn:3"), ("as-vit", "block:3")])
def test_one_step_at_block_three(name: str, site: str) -> None:
    one = an_option(name)
    plan = pomt_plan(one.tables, 12)
    assert [(s.site, s.before, s.after) for s in plan.steps] == [(site, 17, 12)]
    made = one.method.schedule([Place(site, 11)])
    assert plan.latency_ms == pytest.approx(PLANTED.latency(model(DEEP), made))


def test_a_model_with_too_few_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="block 3"):
        pomt_plan(an_option(spec=VitSpec()).tables, 9)


def test_through_the_api(tmp_path: Path) -> None:
    given = model(DEEP)
    rng = np.random.default_rng(0)
    images = tmp_path / "images.npz"
    np.savez(images, image=rng.standard_normal((24, 3, 32, 32)).astype(np.float32))
    profile = PLANTED.profile(given, [method(given, "pomt")])
    asked: dict[str, Any] = {"calibration": images, "images": 2, "profile": profile}
    planned = pipeline.price(given.source, objective="pomt", **asked).planned
    assert planned is not None

    _, check = split(read_calibration(given.source, images), 0, bound=True)
    x, shape = check.samples.arrays["image"], given.analysis.shape

    def answers(keep: int | None) -> Any:
        path = tmp_path / "model.onnx"
        score = Spec("static", {"pattern": "random", "seed": 0})
        steps = () if keep is None else (Reduction("attn:0", score, Spec("topk"), keep),)
        made = pipeline.reduce(given.source, schedule=Schedule("mine", shape, steps))
        onnx.save(to_onnx(made.graph), str(path))
        runner = OrtRunner(path)
        return [int(next(iter(runner.run({"image": i[None]}).values())).argmax()) for i in x]

    dense = np.array(answers(None))
    known = {17: 1.0}
    for keep in sorted({max(round(s * 16), 1) for s in SHARES}):
        known[keep + 1] = float((np.array(answers(keep)) == dense).mean())
    counts = range(min(n for n in known if n >= 3), 18)
    good = np.interp(counts, sorted(known), [known[n] for n in sorted(known)])
    best = chosen(counts, [latency(n, 5) for n in counts], good)
    assert planned.plan.final == best
    if best < 17:
        assert [(s.site, s.after) for s in planned.plan.steps] == [("attn:3", best)]
    assert planned.schedule.method == "pomt"
    assert "picked by accuracy on images" in planned.losses
    assert planned.to_json()["budget"] == {"objective": "pomt"}
