"""Schedules are found that lose little within a budget, whatever is lost and by which method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteRule
from tcompile.planning.optimise.solver import solve
from tcompile.planning.optimise.tables import Floats
from tcompile.planning.options.method_tables import tables_on_one_grid
from tcompile.planning.search.level import LEVELS, level_for
from tcompile.planning.search.search import search, summed_up
from tcompile.planning.search.shapes import Room, Shape, Steps, first_shapes, neighbours
from tcompile.planning.search.space import Space
from tests.support.planted import Planted, method, model
from tests.support.tiny_vit import VitSpec

SPEC = VitSpec(image=64, depth=6)
#: Latency is a line: a step costs little.
PLANTED = Planted(tile=1, rise=0.02, launch=0.01, each=0.0)
LEVEL = replace(LEVELS["fine"], images=8, look=2)
#: By method: what a step of a share f at a block loses.
Loss = Callable[[int, int, float], float]


def space(names: tuple[str, ...], most: float, final: int | None = None) -> Space:
    given = model(SPEC)
    methods = [method(given, name) for name in names]
    profile = PLANTED.profile(given, methods)
    options = tables_on_one_grid(given.graph, methods, profile, least=final, eps=0.0)
    dense = options[0].tables.dense_ms
    return Space(tuple(options), most * dense, final)


def lost_by(one: Space, loss: Loss) -> Callable[[Steps, int], Floats]:
    """Losses that add up over steps; every other image loses half as much again."""

    def measure(steps: Steps, images: int) -> Floats:
        prefix, total = one.options[0].tables.prefix, 0.0
        counts = [one.options[0].tables.tokens, *(s.after for s in steps)]
        for step, (before, after) in zip(steps, pairwise(counts), strict=True):
            block = one.rooms[step.method].sites[step.site].name.block
            assert block is not None
            total += loss(step.method, block, (before - after) / (before - prefix))
        return total * np.array([1.0, 1.5] * images)[:images]

    return measure


def merging(method: int, block: int, share: float) -> float:
    return share**2 * (1 + 3 * (1 - block / 6) ** 3)


def test_nearly_the_least_loss_of_all() -> None:
    one = space(("tome",), 0.8)
    found = search(one, lost_by(one, merging), LEVEL)
    assert one.fits(found[0].steps)
    tables = one.options[0].tables
    n = np.asarray(tables.counts)

    def table(rule: SiteRule) -> Floats:
        block = rule.name.block
        share = np.maximum((n[:, None] - n[None, :]) / (n[:, None] - tables.prefix), 0)
        return share**2 * (9.0 if block is None else 1 + 3 * (1 - block / 6) ** 3)

    exact = solve(replace(tables, loss=tuple(map(table, tables.sites))), one.most_ms)
    # Of eight images, half lose half as much again, and so does the worst quarter.
    assert exact.loss * 1.375 <= found[0].loss * (1 + 1e-9)
    assert found[0].loss < 1.15 * exact.loss * 1.375
    single = search(one, lost_by(one, lambda m, b, f: f), replace(LEVEL, rounds=0, moves=0))
    assert [w.loss for w in single] == sorted(w.loss for w in single)


def test_a_share_of_tokens_is_met() -> None:
    one = space(("tome", "topk"), 0.85, final=40)
    for weighed in search(one, lost_by(one, merging), LEVEL):
        assert weighed.plan.final == 40
        assert weighed.plan.latency_ms <= one.most_ms * (1 + 1e-9)
        assert one.schedule(weighed.steps).final == 39


def test_steps_of_two_methods() -> None:
    one = space(("tome", "topk"), 0.75)

    def loss(method: int, block: int, share: float) -> float:
        late = block >= 3
        return merging(method, block, share) * (0.1 if late == (method == 1) else 1.0)

    best = search(one, lost_by(one, loss), LEVEL)[0]
    assert {s.method for s in best.steps} == {0, 1}
    made = one.schedule(best.steps)
    assert made.method == "tome + topk"
    names = [r.reducer.name for r in made.reductions]
    assert names == sorted(names)  # merge, then topk
    assert {"merge", "topk"} == set(names)


def test_it_says_what_is_the_fastest() -> None:
    one = space(("topk",), 0.01)
    with pytest.raises(UsageError, match=r"at most 0.27\d* ms: .*ask for --latency 6.37 or more"):
        search(one, lost_by(one, merging), LEVEL)


def test_what_cannot_be_built_is_left_out() -> None:
    one = space(("tome", "topk"), 0.8)
    measure = lost_by(one, merging)

    def only_topk(steps: Steps, images: int) -> Floats:
        if any(s.method == 0 for s in steps):
            raise UsageError("no")
        return measure(steps, images)

    assert all(s.method == 1 for w in search(one, only_topk, LEVEL) for s in w.steps)


def test_few_images_first() -> None:
    one, runs = space(("tome",), 0.8), dict[Steps, list[int]]()
    measure = lost_by(one, merging)

    def counted(steps: Steps, images: int) -> Floats:
        runs.setdefault(steps, []).append(images)
        return measure(steps, images)

    search(one, counted, LEVEL)
    assert all(r[0] == LEVEL.look for r in runs.values())
    assert sum(LEVEL.images in r for r in runs.values()) < len(runs) / 2


def test_the_best_few_are_compared_on_more_images() -> None:
    one = space(("tome",), 0.8)
    measure = lost_by(one, merging)
    first = search(one, measure, replace(LEVEL, last=LEVEL.images))

    def unlucky(steps: Steps, images: int) -> Floats:
        """What looks best on the images of the search is bad on all others."""
        found = measure(steps, images)
        return found + (steps == first[0].steps) * (np.arange(images) >= LEVEL.images)

    found = search(one, unlucky, replace(LEVEL, last=3 * LEVEL.images))
    assert {len(w.losses) for w in found} == {3 * LEVEL.images}
    assert len(found) > 1
    assert found[0].steps == first[1].steps
    assert found[-1].steps == first[0].steps


def test_what_the_prior_holds_for_best_is_run_too() -> None:
    one = space(("tome", "topk"), 0.8)
    steps = one.by_prior(1)
    assert steps is not None
    assert one.fits(steps)
    assert len({before - after for before, after in pairwise(s.after for s in steps)}) > 1

    def measure(tried: Steps, images: int) -> Floats:
        return np.full(images, 0.0 if tried == steps else 1.0)

    assert search(one, measure, replace(LEVEL, moves=0))[0].steps == steps
    down = space(("tome",), 0.85, final=40)
    ended = down.by_prior(0)
    assert ended is not None
    assert ended[-1].after == 40
    assert space(("topk",), 0.01).by_prior(0) is None


def test_the_worst_images_count() -> None:
    even, holes = np.full(8, 0.1), np.array([0.0] * 7 + [0.8])
    assert even.mean() == pytest.approx(holes.mean())
    assert summed_up(even) < summed_up(holes)


def test_shapes() -> None:
    rules = tuple(SiteRule(f"attn:{b}", 2, 5, 0.5) for b in range(4))  # type: ignore[arg-type]
    room = Room(0, rules, tuple(range(2, 66)), 1, 4)
    steps = room.steps(Shape(0, 3), 33)
    assert steps is not None
    assert [s.after for s in steps] == [57, 49, 41, 33]
    bent = room.steps(Shape(0, 3, bend=0.7), 33)
    assert bent is not None
    assert [s.after for s in bent] == [53, 47, 39, 33]
    assert bent[-1].after == 33
    assert room.steps(Shape(1, 1), 33) is not None
    assert room.steps(Shape(1, 1), 31) is None  # more than half of them at once
    odd = room.steps(Shape(2, 3), 34)
    assert odd is not None
    assert odd[-1].after == 35  # in twos
    assert Shape(0, 3) in set(first_shapes(4))
    assert Shape(0, 2) in set(neighbours(Shape(0, 3), 4))


def test_a_method_of_the_output_alone() -> None:
    one = space(("fastervlm",), 0.97)
    (best, *_) = search(one, lambda steps, n: np.full(n, 1 / steps[0].after), LEVEL)
    assert [one.options[0].tables.sites[s.site].name for s in best.steps] == ["output"]
    assert one.fits(best.steps)


def test_levels_follow_the_model_alone() -> None:
    assert [level_for(f).name for f in (1e8, 9.2e9, 35e9, 123e9, 700e9)] == [
        "fine",
        "fine",
        "medium",
        "coarse",
        "coarse",
    ]
