"""The rule by which tokens are given back: asked for, chosen on images, or the method's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.core.subgraph import joined
from tcompile.models.onnx_vit import VitSpec
from tcompile.passes.reduce import reduce_graph
from tcompile.planning.losses.distance import distance
from tcompile.planning.restoring import choose_rule
from tcompile.runtime.samples import Samples, run_graph
from tests.support.tiny_vit import save_tiny_vit

FUSED = (
    Reduction("attn:0", Spec("cls"), Spec("fuse"), 10),
    Reduction("block:1", Spec("cls"), Spec("topk"), 7),
)
MERGED = (Reduction("attn:0", None, Spec("merge"), 10),)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restoring")
    return save_tiny_vit(folder / "v.onnx", VitSpec(pool="none"), batch=None)


@pytest.fixture(scope="module")
def images(tokens: Path) -> Samples:
    model = onnx.load(tokens)
    dims = [d.dim_value or 3 for d in model.graph.input[0].type.tensor_type.shape.dim]
    drawn = np.random.default_rng(0).standard_normal([3, *dims[1:]]).astype(np.float32)
    return Samples({model.graph.input[0].name: drawn}, "3 images", real=True)


def test_the_rule_that_loses_least(tokens: Path, images: Samples) -> None:
    """Each loss is that of the rule's own graph, though all were run as one."""
    model = pipeline.read(tokens)
    schedule = Schedule("x", model.analysis.shape, FUSED)
    found = choose_rule(model, schedule, images)
    assert list(found.losses) == ["owner", "nearest", "similar", "interpolate", "stale"]
    dense = run_graph(model.graph, images)
    for rule, loss in found.losses.items():
        asked = replace(schedule, restore=rule)
        made = reduce_graph(model.graph, model.analysis, asked, outputs="restored").graph
        assert loss == pytest.approx(distance(dense, run_graph(made, images)).mean(), abs=1e-6)
    assert found.losses[found.rule] <= 1.02 * min(found.losses.values())
    assert found.words.startswith(f"dropped tokens are given back as {found.rule}: ")
    assert all(rule in found.words for rule in found.losses)


def test_rules_that_say_the_same_of_merged_tokens_are_not_run(
    tokens: Path, images: Samples
) -> None:
    model = pipeline.read(tokens)
    found = choose_rule(model, Schedule("x", model.analysis.shape, MERGED), images)
    assert set(found.losses) == {"owner", "stale"}


def test_what_graphs_compute_alike_is_in_their_union_once(tokens: Path) -> None:
    graph = pipeline.read(tokens).graph
    other = graph.copy()
    last = other.nodes[-1]
    last.inputs = [last.inputs[0], gs.Constant("two", np.full(1, 2, np.float32))]
    last.op, last.attrs, last.domain = "Mul", {}, None
    whole = joined({"a": graph, "b": other})
    assert len(whole.nodes) == len(graph.nodes) + 1 + 2  # what differs, and a name for each output
    assert [o.name for o in whole.outputs] == [f"{n}/{graph.outputs[0].name}" for n in "ab"]


def asked(tokens: Path, **options: Any) -> Schedule:
    return pipeline.plan(tokens, outputs="restored", **options)


def test_explicit_then_images_then_the_methods_own(
    tokens: Path, images: Samples, tmp_path: Path
) -> None:
    data = tmp_path / "images.npz"
    np.savez(data, **images.arrays)
    assert asked(tokens, keep=0.5, method="topk").restore == "owner"
    assert asked(tokens, keep=0.5, method="tome").restore == "owner"
    assert asked(tokens, keep=0.5, method="evit").restore == "nearest"
    given = asked(tokens, keep=0.5, method="evit", restore="stale", calibration=data)
    assert given.restore == "stale"
    assert not any("given back" in note for note in given.notes)
    chosen = asked(tokens, keep=0.5, method="evit", calibration=data)
    assert any(f"given back as {chosen.restore}: " in note for note in chosen.notes)
    assert pipeline.plan(tokens, keep=0.5, method="evit").restore is None


def test_the_rule_of_a_schedule(tokens: Path, images: Samples, tmp_path: Path) -> None:
    model = pipeline.read(tokens)
    made = Schedule("x", model.analysis.shape, FUSED, restore="interpolate")
    assert Schedule.from_json(made.to_json()) == made
    assert asked(tokens, schedule=made).restore == "interpolate"
    assert asked(tokens, schedule=made, restore="owner").restore == "owner"
    old = {k: v for k, v in made.to_json().items() if k != "restore"}
    assert asked(tokens, schedule=old).restore == "nearest"
    with pytest.raises(UsageError, match="'zero' is not a rule"):
        Schedule.from_json(made.to_json() | {"restore": "zero"})
    data = tmp_path / "images.npz"
    np.savez(data, **images.arrays)
    found = asked(tokens, schedule=json.loads(json.dumps(old)), calibration=data)
    assert any(f"given back as {found.restore}: " in note for note in found.notes)


def test_interpolation_needs_a_grid() -> None:
    from tcompile.passes.reduce.restoring import check_rule

    with pytest.raises(UsageError, match="--restore similar") as error:
        check_rule("interpolate", ())
    assert error.value.where == "--restore interpolate"
