"""`inspect` and `inspect --why`: what is said of models whose structure is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.report.inspection_page import page, ranges, spans
from tests.oracles.exports import exported
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.support.zoo_matrix import BY_ID, Variant


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return save_tiny_vit(tmp_path / "vit.onnx", batch=None)


def quick(case_id: str, cache: Path, batch: int | str = "dynamic") -> Path:
    """An export that costs little, shared with other tests."""
    case = BY_ID[case_id]
    spelled = "eager" if batch == 1 else case.attentions[0]
    return exported(case, Variant("torchscript", spelled, 17, batch), cache)


def test_ranges() -> None:
    assert spans([5, 0, 1, 2]) == ["0–2", "5"]
    names = ["attn:0", "block:3", "attn:1", "output"]
    assert ranges(map(SiteName, names)) == "attn:0–1, block:3, output"
    assert ranges([]) == ""


def test_a_plain_model(vit: Path) -> None:
    found = pipeline.inspect(vit)
    assert (found.tokens, found.prefix, found.suffix, found.patches) == (17, 1, 0, 16)
    assert (found.cls, found.grid, found.grouping) == (0, (4, 4), None)
    assert [p.kind for p in found.parts] == ["fixed", "patches"]
    assert [o.holds for o in found.outputs] == ["no token axis"]
    assert found.sides == ()
    for before, after in zip(found.blocks, found.blocks[1:], strict=False):
        assert before.stream_out == after.stream_in
    assert {s.site for s in found.sites if s.legal} >= {"attn:0", "block:2", "output", "around:1"}
    text = found.to_text()
    assert "Tokens: 17 = 1 prefix + 16 patches (4 × 4); token 0 is read by itself (CLS)" in text
    assert "Tokens may leave at attn:0–2, block:0–2, output" in text
    assert "batch free" in text


def test_json_carries_all_of_it(vit: Path) -> None:
    found = pipeline.inspect(vit)
    document = json.loads(json.dumps(found.to_json()))
    assert document["sites"][0]["restored"] == {"reason": "", "merge": "", "fuse": "", "drop": ""}
    assert document["blocks"][0]["stream_in"] == found.blocks[0].stream_in


def test_a_stated_prefix(tmp_path: Path) -> None:
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(prefix=0, pool="none"))
    found = pipeline.inspect(path, prefix=3)
    assert (found.prefix, found.patches) == (3, 13)
    assert "3 stated by hand" in found.to_text()
    assert [o.holds for o in found.outputs] == ["all tokens"]


@pytest.mark.parametrize(
    ("case_id", "kinds", "axes"),
    [
        ("timm-eva02", {"rotary cosines", "rotary sines"}, {(0,)}),
        ("hf-beit", {"position bias"}, {(2, 3)}),
    ],
)
def test_side_inputs(
    case_id: str, kinds: set[str], axes: set[tuple[int, ...]], cache: Path
) -> None:
    found = pipeline.inspect(quick(case_id, cache))
    assert {s.kind for s in found.sides} == kinds
    assert {s.axes for s in found.sides} == axes
    assert {b for s in found.sides for b in s.blocks} == {0, 1, 2}
    assert "in blocks 0–2" in found.to_text()


def test_groups(cache: Path) -> None:
    found = pipeline.inspect(quick("hf-internvl-projector", cache))
    assert found.grouping is not None
    assert (found.grouping.members, found.grouping.sides, found.grouping.groups) == (4, (2, 2), 16)
    assert [o.holds for o in found.outputs] == ["one row for each group of patches"]
    legal = [s for s in found.sites if s.legal and not s.site.startswith(("around", "inside"))]
    assert {s.granularity for s in legal} == {4}
    assert "in whole groups of 4 at attn:0–2" in found.to_text()
    assert "merging would break them" in found.to_text()


def test_outputs_of_tokens(cache: Path) -> None:
    found = pipeline.inspect(quick("open-clip-tokens", cache))
    assert [o.holds for o in found.outputs] == ["no token axis", "patches only"]


def test_many_blocks_fit_a_page(vit: Path) -> None:
    found = pipeline.inspect(vit)
    blocks = tuple(replace(found.blocks[0], block=i, node=f"softmax_{i}") for i in range(48))
    why = "in block {}, Add '/blocks.{}/Add' joins what it should not"
    sites = tuple(
        replace(
            site,
            site=SiteName.of("attn", i),
            legal=False,
            reduced=replace(site.reduced, reason=why.format(i, i)),
        )
        for i, site in enumerate([found.sites[0]] * 48)
    )
    text = page(replace(found, blocks=blocks, sites=sites))
    assert len(text.splitlines()) < 25
    assert "0–47" in text
    assert "softmax_0 … softmax_47" in text
    assert "not at attn:0–47: in block 0, Add '/blocks.0/Add' joins what it should not" in text
    assert "(and 47 alike)" in text


# ---- why -----------------------------------------------------------------------------------------


def test_why_an_attention(vit: Path) -> None:
    node = pipeline.inspect(vit).blocks[1].node
    found = pipeline.explain(vit, node)
    assert (found.op, found.block, found.place) == ("Softmax", 1, "in the attention of block 1")
    assert found.inputs[0].axes[-2:] == ("all 17 tokens", "all 17 tokens")
    assert found.inputs[0].live
    assert {w.site for w in found.walks} == {"attn:0", "around:1"}
    assert all("log size" in w.edits[0] for w in found.walks if w.site == "attn:0")
    assert "all 17 tokens" in found.to_text()
    json.dumps(found.to_json())


def test_why_by_the_name_of_a_tensor(vit: Path) -> None:
    blocks = pipeline.inspect(vit).blocks
    found = pipeline.explain(vit, blocks[1].stream_out)
    assert found.op == "Add"
    assert found.place == "in the MLP of block 1"
    assert found.outputs[0].name == blocks[1].stream_out
    image = pipeline.explain(vit, "image")
    assert (image.op, image.place) == ("input", "an input of the model")
    stored = onnx.load(vit).graph.initializer[0].name
    assert pipeline.explain(vit, stored).op == "stored"


def test_why_by_a_site(vit: Path, tmp_path: Path) -> None:
    """Sites are named alike whatever exporter wrote the file."""
    blocks = pipeline.inspect(vit).blocks
    found = pipeline.explain(vit, "attn:1")
    assert (found.name, found.site) == (blocks[1].node, "Tokens may leave at attn:1")
    assert found.to_text().startswith("Tokens may leave at attn:1\nSoftmax '")
    assert pipeline.explain(vit, "inside:1").name == blocks[1].node
    for site in ("block:1", "around:1"):
        assert pipeline.explain(vit, site).outputs[0].name == blocks[1].stream_out
    assert pipeline.explain(vit, "output").op == "LayerNormalization"
    with pytest.raises(UsageError, match="no node or tensor 'attn:99'"):
        pipeline.explain(vit, "attn:99")
    free = save_tiny_vit(tmp_path / "v.onnx", VitSpec(prefix=0, pool="none"))
    model = onnx.load(free)
    axis = onnx.helper.make_tensor("along", onnx.TensorProto.INT64, [], [1])
    model.graph.initializer.append(axis)
    model.graph.output[0].name, before = "summed", model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("CumSum", [before, "along"], ["summed"], "sum"))
    onnx.save(model, str(free))
    only = "Tokens may leave at attn:0 with --outputs restored only: CumSum 'sum'"
    assert only in pipeline.explain(free, "attn:0").to_text()


def test_why_places(vit: Path) -> None:
    nodes = pipeline.read(vit).graph.nodes
    places = {pipeline.explain(vit, n.name).place for n in (nodes[0], nodes[-1])}
    assert places == {"before the first block", "behind the last block"}


def test_why_a_side_input(cache: Path) -> None:
    path = quick("hf-beit", cache)
    side = pipeline.inspect(path).sides[1]
    found = pipeline.explain(path, side.nodes[0])
    assert side.tensor in found.walks[0].edits[0]
    assert "follow the tokens that stay" in found.walks[0].edits[0]
    assert any("forbids fusing" in b for b in found.walks[0].barriers)


def test_why_a_barrier(tmp_path: Path) -> None:
    """Tokens accumulated along their axis behind the blocks: the node says what it forbids."""
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(prefix=0, pool="none"))
    model = onnx.load(path)
    (output,) = model.graph.output
    axis = onnx.helper.make_tensor("along", onnx.TensorProto.INT64, [], [1])
    model.graph.initializer.append(axis)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == output.name:
                node.output[i] = "before"
    model.graph.node.append(
        onnx.helper.make_node("CumSum", ["before", "along"], [output.name], name="sum")
    )
    onnx.save(model, str(path))
    found = pipeline.explain(path, "sum")
    assert set(found.forbids) >= {"attn:0", "block:1", "output"}
    assert found.walks[0].barriers == ("forbids it: it accumulates over tokens",)
    assert "It is why tokens may not leave at attn:0–2" in found.to_text()
    reasons = [line for line in pipeline.inspect(path).to_text().splitlines() if "not at" in line]
    assert any("accumulates over tokens" in line for line in reasons)


def test_why_nothing_of_that_name(vit: Path) -> None:
    node = pipeline.inspect(vit).blocks[0].node
    with pytest.raises(UsageError, match="nearest: .*" + node):
        pipeline.explain(vit, node + "x")
    with pytest.raises(UsageError, match="no node or tensor"):
        pipeline.explain(vit, "")


def test_why_a_node_that_was_folded(tmp_path: Path, vit: Path) -> None:
    model = onnx.load(vit)
    for node in model.graph.node[:1]:
        model.graph.node.insert(0, onnx.helper.make_node("Identity", ["image"], ["i"], name="same"))
        node = model.graph.node[1]
        node.input[0] = "i"
    onnx.save(model, str(vit))
    with pytest.raises(UsageError, match="'same' is in the file, but was folded away"):
        pipeline.explain(vit, "same")


def test_segments(cache: Path) -> None:
    """Windows of one size, one attention each, that a split keeps apart."""
    found = pipeline.inspect(quick("hf-qwen2.5-vl", cache, 1))
    assert (found.patches, found.segments) == (64, 4)
    assert [b.window for b in found.blocks] == [(16,), (), (16,), ()]
    assert "4 segments of 16 patches" in found.to_text()
    assert "from each of 4 segments" in found.to_text()


def test_windows(cache: Path) -> None:
    found = pipeline.inspect(quick("hf-sam", cache, 1))
    assert [b.window for b in found.blocks] == [(4, 4), (), (4, 4), ()]
    assert {b.heads for b in found.blocks} == {2}
    assert found.grouping is None
    text = found.to_text()
    assert "Tokens may leave at no site" in text
    assert "Tokens may bypass blocks at around:1, around:3" in text
    assert "block 0 attends within windows of 4 × 4 tokens" in text
