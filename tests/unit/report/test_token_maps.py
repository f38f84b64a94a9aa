"""Maps of tokens, held against the model in numpy, and against what artifacts say of their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.schedule import Schedule
from tcompile.report.token_maps import (
    DROPPED,
    MapStep,
    counts_of,
    counts_words,
    last_map,
    run_trace,
    write_trace,
)
from tcompile.runtime.samples import Samples, run_graph
from tests.acceptance.cli.test_hints import head_of_maps
from tests.support import numpy_vit
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit

SPEC = VitSpec(depth=4)
ALL_TOKENS = VitSpec(depth=4, pool="none")
MERGE, DROP = {"name": "merge"}, {"name": "topk"}


def step(site: str, reducer: dict[str, Any], keep: int, score: str | None = None) -> dict[str, Any]:
    named = {"name": score} if score else None
    return {"site": site, "score": named, "reducer": reducer, "keep": keep}


def schedule(*steps: dict[str, Any]) -> Schedule:
    shape = {"tokens": 17, "prefix": 1, "patches": 16, "blocks": 4}
    document = {"schema": 1, "method": "own", "model": shape, "reductions": list(steps)}
    return Schedule.from_json(document)


def images(count: int = 2) -> Samples:
    arrays = np.random.default_rng(3).normal(size=(count, 3, 32, 32)).astype(np.float32)
    return Samples({"image": arrays}, "noise", real=False)


def maps(path: Path, found: Schedule, samples: Samples) -> list[MapStep]:
    trace, why = write_trace(pipeline.read(path), found, path.with_name("trace.onnx"))
    assert trace is not None, why
    assert trace.grid == (4, 4)
    return run_trace(trace, samples)


def groups(region: np.ndarray) -> set[frozenset[int]]:
    """The patches that are one token each, as sets."""
    return {
        frozenset(map(int, np.flatnonzero(region == name)))
        for name in np.unique(region[region != DROPPED])
    }


@pytest.mark.parametrize(
    ("steps", "leave"),
    [
        (
            (step("attn:0", DROP, 11, "cls"), step("attn:2", DROP, 5, "cls")),
            {0: numpy_vit.keep_best(11), 2: numpy_vit.keep_best(5)},
        ),
        (
            (step("attn:0", MERGE, 12), step("attn:1", MERGE, 8), step("attn:2", MERGE, 4)),
            dict.fromkeys(range(3), numpy_vit.merge_half),
        ),
    ],
)
def test_every_step_is_as_the_formula_has_it(
    steps: tuple[dict[str, Any], ...], leave: dict[int, numpy_vit.Leave], tmp_path: Path
) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)
    weights, samples, found = random_weights(SPEC), images(), schedule(*steps)
    shown = maps(path, found, samples)
    logits = run_graph(pipeline.reduce(path, schedule=found).graph, samples)["logits"]
    for i, image in enumerate(samples.arrays["image"]):
        wanted, last = numpy_vit.run(image, weights, SPEC, leave)
        np.testing.assert_allclose(logits[i], last, atol=1e-4)  # so that it is the same model
        assert len(wanted) == len(shown)
        for want, have in zip(wanted, shown, strict=True):
            assert groups(have.region[i]) == {frozenset(m) for m in want}
            assert have.keep == len(want)


CHAIN = {"name": "chain", "steps": [{"reducer": DROP, "keep": 12}, {"reducer": MERGE, "keep": 9}]}


@pytest.mark.parametrize(
    "steps",
    [
        [step("attn:0", MERGE, 12), step("attn:1", MERGE, 9), step("block:2", MERGE, 5)],
        [step("attn:0", DROP, 12, "cls"), step("attn:2", DROP, 5, "norm")],
        [step("attn:0", {"name": "fuse"}, 12, "cls"), step("attn:2", {"name": "fuse"}, 6, "cls")],
    ],
)
def test_each_step_is_what_a_model_that_ends_there_says(
    steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The first steps of a schedule alone: outputs tell which tokens their rows are, and how many
    patches each stands for."""
    path, samples = tmp_path / "vit.onnx", images()
    onnx.save(build_vit(ALL_TOKENS, random_weights(ALL_TOKENS), batch=None), path)
    shown = maps(path, schedule(*steps), samples)
    for count, have in enumerate(shown, 1):
        told = run_graph(pipeline.reduce(path, schedule=schedule(*steps[:count])).graph, samples)
        index, owner = (told.get(f"token_{what}") for what in ("index", "owner"))
        assert index is not None
        rows = np.where(index[:, 1:] > 0, index[:, 1:] - 1, -1)  # without CLS
        owners = None if owner is None else owner[:, 1:] - 1
        fused = steps[0]["reducer"]["name"] == "fuse"
        if not fused:
            want = last_map(rows, None if steps[0]["reducer"] == DROP else owners, 16)
            np.testing.assert_array_equal(have.region, want)
        for region, kept in zip(have.region, rows, strict=True):
            own = np.unique(region[(region != DROPPED) & (region < 16)])
            np.testing.assert_array_equal(own, np.sort(kept[kept >= 0]))
        if "token_size" in told:
            for sizes, region in zip(told["token_size"][:, 1:], have.region, strict=True):
                assert sorted(sizes) == sorted(map(len, groups(region)))


def test_without_owners_a_fused_row_has_all_that_left() -> None:
    """Only an image without such a row says that they were dropped."""
    region = last_map(np.array([[0, -1, 3], [0, 2, 3]]), None, 5)
    np.testing.assert_array_equal(region, [[0, 6, 6, 3, 6], [0, DROPPED, 2, 3, DROPPED]])
    counts = counts_of(region[0])
    assert (counts.alone, counts.merged, counts.dropped, counts.regions) == (2, 3, 0, 1)


def test_what_is_dropped_before_a_merge_is_not_merged(tmp_path: Path) -> None:
    """An owner is a stand-in for a dropped token; a map says that it is gone."""
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)
    apart = (step("attn:0", DROP, 12, "cls"), step("attn:1", MERGE, 9))
    for steps in (apart, (step("attn:0", CHAIN, 9, "cls"),)):
        first, second = maps(path, schedule(*steps), images())
        for dropped, after in zip(first.region, second.region, strict=True):
            assert counts_of(dropped).dropped == counts_of(after).dropped == 4
            np.testing.assert_array_equal(dropped == DROPPED, after == DROPPED)
            assert len(groups(after)) == 9


def test_a_merged_token_that_is_dropped_takes_all_its_patches(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)
    merged, after = maps(
        path, schedule(step("attn:0", MERGE, 9), step("attn:1", DROP, 5, "norm")), images()
    )
    for before, now in zip(merged.region, after.region, strict=True):
        assert groups(now) < groups(before)
        assert len(groups(now)) == 5


def test_tokens_that_pass_a_block_by_are_back_behind_it(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)
    found = pipeline.plan(path, method="bypass", keep=0.5)
    shown = maps(path, found, images())
    assert all(one.passing for one in shown)
    assert [counts_of(one.region[0]).dropped for one in shown] == [16 - one.keep for one in shown]
    assert "pass it by" in counts_words(shown[0], shown[0].region[0])


def test_where_there_is_no_map_the_reason_is_said(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC)
    model = pipeline.read(path)
    trace, why = write_trace(model, schedule(), tmp_path / "none.onnx")
    assert (trace, why) == (None, "no token leaves")
    smaller = pipeline.plan(path, method="resolution", keep=0.3)
    trace, why = write_trace(model, smaller, tmp_path / "none.onnx")
    assert trace is None
    assert why == "the image itself is smaller, 3 x 3 patches: no token leaves"
    assert not (tmp_path / "none.onnx").exists()


def test_outputs_that_are_restored_have_the_same_maps(tmp_path: Path) -> None:
    """Behind a decoder tokens may leave only where every output gets them back."""
    path, samples = tmp_path / "maps.onnx", images(1)
    onnx.save(head_of_maps(), path)
    shape = {"tokens": 16, "prefix": 0, "patches": 16, "blocks": 3}
    steps = [step("attn:0", MERGE, 10), step("attn:1", MERGE, 6)]
    document = {"schema": 1, "method": "own", "model": shape, "reductions": steps}
    found, model = Schedule.from_json(document), pipeline.read(path)
    trace, why = write_trace(model, found, tmp_path / "reduced.onnx")
    assert trace is None
    assert "ConvTranspose" in why
    trace, why = write_trace(model, found, tmp_path / "restored.onnx", "restored")
    assert trace is not None, why
    first, last = run_trace(trace, samples)
    assert [len(groups(m.region[0])) for m in (first, last)] == [10, 6]
    assert all(any(a <= b for b in groups(last.region[0])) for a in groups(first.region[0]))


def test_a_map_in_words() -> None:
    region = np.array([0, 0, 2, DROPPED, 2, 2, 6, 7])
    c = counts_of(region)
    assert (c.alone, c.merged, c.dropped, c.regions, c.largest) == (2, 5, 1, 2, 3)
    said = counts_words(MapStep("merge at attn:0", 4, False, region[None]), region)
    assert said == (
        "4 of 8 patch tokens are left; 5 patches are in 2 merged regions, the largest of 3; "
        "1 is dropped"
    )
