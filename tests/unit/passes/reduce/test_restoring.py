"""Tokens given back by rules: what TensorRT parses, half precision, what a rule refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.models.onnx_vit import VitSpec
from tcompile.passes.lower import lower
from tcompile.passes.reduce.restoring import default_rule, rules_for
from tcompile.runtime.samples import Samples, run_graph
from tcompile.targets import load_target
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import save_tiny_vit

RULES = (("evit", "nearest"), ("evit", "similar"), ("topk", "interpolate"), ("evit", "stale"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restoring")
    return save_tiny_vit(folder / "v.onnx", VitSpec(pool="none"), batch=None)


@pytest.mark.parametrize(("method", "rule"), RULES)
def test_tensorrt_parses_what_a_rule_writes(
    method: str, rule: str, tokens: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from tcompile.targets.backends.parsing import parse_elsewhere

    made = pipeline.reduce(tokens, keep=0.5, method=method, outputs="restored", restore=rule)
    device = load_target("rtx-4090")
    lowered = lower(
        made.graph, target=device, precision="fp16", fp32_nodes=made.fp32_nodes, token_ops="native"
    )
    onnx.save(to_onnx(lowered), tmp_path / "lowered.onnx")
    assert parse_elsewhere(tmp_path / "lowered.onnx") == ()


def test_weights_are_computed_in_fp32(tokens: Path) -> None:
    """Cosines of tokens that are alike, over 0.03, are beyond fp16."""
    made = pipeline.reduce(tokens, keep=0.5, method="topk", outputs="restored", restore="similar")
    written = [n for n in made.graph.nodes if "output/" in n.name and n.op in ("MatMul", "Softmax")]
    assert len(written) == 3
    assert {n.name for n in written} <= made.fp32_nodes


def test_a_tensor_made_by_an_attention_is_refused_by_rules_of_the_stream(tmp_path: Path) -> None:
    """What a block's attention gives, as an output: a copy of a row will do, a mean will not."""
    path = save_tiny_vit(tmp_path / "v.onnx", VitSpec(pool="none"), batch=1)
    model = onnx.load(path)
    analysis = pipeline.read(path).analysis
    context = analysis.blocks[-1].attention.context
    apart = onnx.helper.make_node("Transpose", [context], ["heads"], perm=[0, 2, 1, 3])
    model.graph.node.append(apart)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("heads"))
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    asked = {"keep": 0.5, "method": "topk:block=0", "outputs": "restored"}
    with pytest.raises(UsageError, match="attention") as error:
        pipeline.reduce(path, restore="similar", **asked)
    assert (error.value.where, error.value.hint) == ("--restore similar", "--restore nearest")
    dense, kept = (pipeline.reduce(path, **(asked | {"keep": k})) for k in (1.0, 0.5))
    shapes = [[o.shape for o in made.graph.outputs] for made in (dense, kept)]
    assert shapes[0] == shapes[1]


def _steps(*reducers: str) -> list[Reduction]:
    return [Reduction(f"attn:{i}", Spec("cls"), Spec(name), 8) for i, name in enumerate(reducers)]


def test_tokens_that_left_at_the_output_have_the_rows_of_the_dense_model(tokens: Path) -> None:
    """The stream had them all; a rule of copies gives the kept rows."""
    drawn = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    asked = {"keep": 0.5, "method": "topk:site=output", "outputs": "restored"}
    found = {}
    for rule in ("nearest", "similar", "stale"):
        made = pipeline.reduce(tokens, restore=rule, **asked)
        images = Samples({made.graph.inputs[0].name: drawn}, "2 images", real=True)
        (found[rule],) = run_graph(made.graph, images).values()
        (dense,) = run_graph(made.dense, images).values()
    assert np.array_equal(found["similar"], dense)
    assert np.array_equal(found["stale"], dense)
    assert not np.allclose(found["nearest"], dense)


def test_which_rules_differ() -> None:
    grid = (4, 4)
    assert rules_for(_steps("merge", "merge"), grid) == ("owner", "stale")
    assert default_rule(_steps("merge", "topk")) == "owner"
    assert default_rule(_steps("topk", "fuse")) == "nearest"
    every = {"owner", "nearest", "similar", "interpolate", "stale"}
    assert set(rules_for(_steps("merge", "topk"), grid)) == every
    assert set(rules_for(_steps("fuse"), ())) == every - {"interpolate"}


def test_a_token_that_stays_has_its_own_row(tokens: Path) -> None:
    """By every rule, and whatever the others are given."""
    model = pipeline.read(tokens)
    steps = _steps("fuse", "topk")
    schedule = Schedule("x", model.analysis.shape, tuple(steps[:1]))
    drawn = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    images = Samples({model.graph.inputs[0].name: drawn}, "2 images", real=True)
    reduced = run_graph(pipeline.apply_schedule(model, schedule).graph, images)
    for rule in ("owner", "nearest", "similar", "interpolate", "stale"):
        asked = Schedule("x", model.analysis.shape, schedule.reductions, restore=rule)
        made = pipeline.apply_schedule(model, asked, "restored")
        (whole,) = run_graph(made.graph, images).values()
        for b, index in enumerate(reduced["token_index"]):
            rows = reduced["tokens"][b][index >= 0]
            np.testing.assert_allclose(whole[b][index[index >= 0]], rows, atol=2e-6)
