"""Relations that hold whatever the right numbers are, over a handful of families.

`keep 1.0 is the dense graph` is in test_masked.py, for every family.

Two stages are one composed stage only where nothing is computed between them that reads what the
first removed: scores are made anew in every block, so `topk` at block 0 and again at block 1 is not
`topk` once. It holds where the second stage removes what no output reads, and for the choice
itself: the best K of the best L are the best K.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest

from tcompile import pipeline
from tests.oracles.compare import EXTRA, infer
from tests.oracles.dense_file import Arrays, feed_for
from tests.oracles.exports import exported, selection
from tests.oracles.processed import PROCESSORS
from tests.support.onnx_models import to_onnx
from tests.support.zoo_matrix import BY_ID, Case, Variant, variants

pytestmark = pytest.mark.usefixtures("read_once")

METHODS = ("topk", "evit", "tome")
ALL = bool(os.environ.get("TCOMPILE_MATRIX"))
FAMILIES = (
    "timm-vit",
    "timm-dinov2-reg4",
    "timm-siglip",
    "timm-eva02",
    "timm-beit",
    "timm-dinov3",
    "hf-vit",
)
#: A few operations in float32 in another order, relative to the largest magnitude.
NOISE = 5e-6


def batched(case: Case) -> Variant:
    """An export that takes several images: dynamo's with a free batch of the first family; of the
    others one that test_conformance.py has as well, or one that costs little."""
    quick = Variant("torchscript", case.attentions[0], 20, 4)
    all_of_them = ALL or case.id == FAMILIES[0]
    choice = variants(case) if all_of_them else [*selection(case), quick]
    return next(v for v in choice if v.batch != 1 and 18 <= v.opset < 23)


def run(model: onnx.ModelProto, feed: Arrays) -> Arrays:
    return infer(model, feed)


def same(found: Arrays, expected: Arrays) -> None:
    """Equal up to noise, and exactly in what names tokens."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(EXTRA):
            np.testing.assert_array_equal(found[name], value)
        else:
            scale = float(np.abs(value).max())
            np.testing.assert_allclose(found[name], value, rtol=0, atol=NOISE * scale)


def reduced(path: Path, **request: Any) -> onnx.ModelProto:
    return to_onnx(pipeline.reduce(path, **request).graph)


def methods(case: Case) -> list[str]:
    return [method for method in METHODS if method not in case.refused]


@pytest.mark.parametrize("case_id", FAMILIES)
def test_permuting_the_batch_permutes_the_outputs(case_id: str, cache: Path) -> None:
    case = BY_ID[case_id]
    path = exported(case, batched(case), cache)
    feed = feed_for(onnx.load(path), batch=4)
    order = np.array([2, 0, 3, 1])
    for method in methods(case):
        model = reduced(path, keep=0.6, method=method)
        straight = run(model, feed)
        turned = run(model, {name: value[order] for name, value in feed.items()})
        same(turned, {name: value[order] for name, value in straight.items()})


READ_BY_CLS = ("timm-vit", "timm-dinov2-reg4", "timm-beitv2-cls", "hf-vit-classify", "open-clip")


@pytest.mark.parametrize("site", ["block", "output"])
@pytest.mark.parametrize("case_id", READ_BY_CLS)
def test_a_token_that_no_output_reads_is_not_missed(case_id: str, site: str, cache: Path) -> None:
    """Behind the last block only CLS is read."""
    case = BY_ID[case_id]
    path = exported(case, batched(case), cache)
    last = pipeline.plan(path, keep=0.5, method="topk").model.blocks - 1
    method = f"topk:block={last},site=block" if site == "block" else "topk:site=output"
    made = pipeline.reduce(path, keep=0.2, method=method)
    assert made.schedule.reductions
    feed = feed_for(onnx.load(path), batch=4)
    same(run(to_onnx(made.graph), feed), run(to_onnx(made.dense), feed))


def test_a_second_stage_that_no_output_reads_changes_nothing(cache: Path) -> None:
    case = BY_ID["timm-vit"]
    path = exported(case, batched(case), cache)
    once = pipeline.reduce(path, keep=0.6, method="topk:block=0")
    document = once.schedule.to_json()
    last = document["model"]["blocks"] - 1
    document["reductions"] += [{**document["reductions"][0], "site": f"block:{last}", "keep": 7}]
    feed = feed_for(onnx.load(path), batch=4)
    same(run(reduced(path, schedule=document), feed), run(to_onnx(once.graph), feed))


@pytest.mark.parametrize("case_id", ["hf-vit", "hf-siglip-vision"])
def test_the_best_of_the_best_are_the_best(case_id: str, cache: Path) -> None:
    """Behind the last block, keeping K is keeping L > K and then K of these."""
    case = BY_ID[case_id]
    path = exported(case, batched(case), cache)
    feed = feed_for(onnx.load(path), batch=4)
    many, few = (run(reduced(path, keep=k, method="topk:site=output"), feed) for k in (0.7, 0.3))
    for row in range(4):
        kept = many["token_index"][row].tolist()
        places = [kept.index(token) for token in few["token_index"][row]]
        np.testing.assert_allclose(
            few["last_hidden_state"][row], many["last_hidden_state"][row][places], atol=1e-5
        )


# ---- what other tools do to a file before --------------------------------------------------------


def upgraded(source: Path, target: Path) -> None:
    """The newest opset that onnx converts to."""
    model = onnx.load(source)
    before = model.opset_import[0].version
    onnx.save(onnx.version_converter.convert_version(model, max(21, before + 1)), target)


def reordered(source: Path, target: Path) -> None:
    """Another order of execution: each node as late as possible."""
    model = onnx.load(source)
    left, order = list(model.graph.node), []
    while left:
        needed = {name for node in left for name in node.input}
        free = [node for node in left if not needed & set(node.output)]
        order += free
        done = {id(node) for node in free}
        left = [node for node in left if id(node) not in done]
    del model.graph.node[:]
    model.graph.node.extend(reversed(order))
    onnx.save(model, target)


def with_dead_ends(source: Path, target: Path) -> None:
    """Nodes whose results nothing reads, and copies of weights."""
    model = onnx.load(source)
    for i, node in enumerate(list(model.graph.node)[::7]):
        made = onnx.helper.make_node("Identity", [node.output[0]], [f"dead_{i}"], f"dead_{i}")
        model.graph.node.append(made)
    copy = onnx.TensorProto()
    copy.CopyFrom(model.graph.initializer[0])
    copy.name = "dead_weight"
    model.graph.initializer.append(copy)
    onnx.save(model, target)


Processor = Callable[[Path, Path], None]
BEFORE: tuple[Processor, ...] = (*PROCESSORS, upgraded, reordered, with_dead_ends)


@pytest.mark.parametrize("case_id", FAMILIES)
def test_other_tools_change_nothing(case_id: str, cache: Path, tmp_path: Path) -> None:
    """Neither the schedule nor the outputs, whoever had the file before: by one method or another,
    with TCOMPILE_MATRIX by both."""
    case = BY_ID[case_id]
    path = exported(case, batched(case), cache)
    feed = feed_for(onnx.load(path), batch=4)
    expected = {m: pipeline.reduce(path, keep=0.6, method=m) for m in ("topk", "tome")}
    outputs = {m: run(to_onnx(made.graph), feed) for m, made in expected.items()}
    for turn, process in enumerate(BEFORE, FAMILIES.index(case_id)):
        processed = tmp_path / f"{process.__name__}.onnx"
        process(path, processed)
        for method, made in expected.items():
            if not ALL and method != list(expected)[turn % 2]:
                continue
            again = pipeline.reduce(processed, keep=0.6, method=method)
            assert again.schedule == made.schedule, process.__name__
            same(run(to_onnx(again.graph), feed), outputs[method])
