"""One signature for one structure; another for anything that changes what runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tcompile import pipeline
from tcompile.passes.stages import Analysed
from tcompile.profiling.structure import layout_of, partition_at, partition_dense
from tests.support.profiling import method, sided, tiny
from tests.support.tiny_vit import VitSpec


def halves(model: Analysed) -> list[tuple[str, str]]:
    """(role, signature) of the dense model's halves."""
    found = partition_dense(model.graph, model.analysis)
    return [(p.role, p.signature) for p in found.parts if p.role in ("attn", "mlp")]


def test_blocks_share_a_signature_and_weights_do_not_matter(tmp_path: Path) -> None:
    first = halves(tiny(tmp_path, VitSpec(depth=4)))
    assert len(set(first)) == 2
    assert [r for r, _ in first] == ["attn", "mlp"] * 4
    assert set(halves(tiny(tmp_path, VitSpec(depth=2)))) == set(first)


@pytest.mark.parametrize("count", [5, 9, 16])
def test_token_counts_do_not_matter(tmp_path: Path, count: int) -> None:
    model = tiny(tmp_path)
    dense = {s for _, s in halves(model)}
    assert set(partition_at(model.graph, method(model, "topk"), count).halves()) == dense
    assert {s for _, s in halves(tiny(tmp_path, VitSpec(image=48)))} == dense


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        (VitSpec(width=64), {"attn", "mlp"}),
        (VitSpec(mlp_ratio=3), {"mlp"}),
        # How many heads there are is only in a shape and in a scale.
        (VitSpec(heads=4), {"attn"}),
    ],
)
def test_widths_matter(tmp_path: Path, spec: VitSpec, changed: set[str]) -> None:
    before, after = dict(halves(tiny(tmp_path))), dict(halves(tiny(tmp_path, spec)))
    assert {role for role in before if before[role] != after[role]} == changed


def test_activations_matter(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    changed = onnx.load(str(tmp_path / "tiny.onnx"))
    for node in changed.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Tanh"
    path = tmp_path / "tanh.onnx"
    onnx.save(changed, str(path))
    before, after = dict(halves(model)), dict(halves(pipeline.read(path)))
    assert before["attn"] == after["attn"]
    assert before["mlp"] != after["mlp"]


def test_masks_and_proportional_attention_matter(tmp_path: Path) -> None:
    model, with_sides = tiny(tmp_path), sided(tmp_path)
    assert dict(halves(model))["attn"] != dict(halves(with_sides))["attn"]
    assert dict(halves(model))["mlp"] == dict(halves(with_sides))["mlp"]
    merged = layout_of(model.graph, method(model, "tome"))
    dropped = layout_of(model.graph, method(model, "topk"))
    assert merged.dense == dropped.dense == dropped.reduced
    assert merged.reduced[0] == merged.dense[0], "before the first step there are no sizes"
    assert merged.reduced[1][0] != merged.dense[1][0]
    assert merged.reduced[1][1] == merged.dense[1][1]


def test_a_signature_is_of_the_part_alone(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    found = partition_dense(model.graph, model.analysis)
    before = next(p.signature for p in found.parts if p.role == "mlp")
    for node in model.graph.nodes:
        node.name = f"renamed_{node.name}"
    renamed = partition_dense(model.graph, model.analysis)
    assert next(p.signature for p in renamed.parts if p.role == "mlp") == before
