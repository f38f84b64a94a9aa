"""TensorRT-RTX engines, built for a chosen GPU on a machine that has none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.core.errors import MissingExtraError, ModelError, TcompileError, UsageError
from tcompile.passes.lower import lower
from tcompile.targets import list_targets, load_target
from tcompile.targets.backends import FusedAttention, emit
from tcompile.targets.backends.rtx import build, version
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import attention_blocks, parse, save

pytest.importorskip("tensorrt_rtx")


def lowered(folder: Path, target: str, precision: str = "fp16", **options: object) -> Path:
    """A model of attention blocks, lowered and saved."""
    keep = options.pop("fp32_nodes", frozenset())
    graph = gs.import_onnx(attention_blocks(**options))  # type: ignore[arg-type]
    result = lower(
        graph,
        target=load_target(target),
        precision=precision,
        fp32_nodes=keep,  # type: ignore[arg-type]
    )
    return save(to_onnx(result), folder)


@pytest.mark.parametrize("target", ["t4", "rtx-3060", "rtx-4090", "rtx-5090"])
def test_every_attention_is_fused(tmp_path: Path, target: str) -> None:
    path = lowered(tmp_path, target, mask="shared", batch="batch")
    emitted = emit(path, tmp_path, target=load_target(target), precision="fp16", batch=(1, 2, 4))
    assert emitted.fused == FusedAttention(expected=3, found=3)
    assert emitted.versions == {"tensorrt-rtx": version()}
    file, layers = emitted.files
    assert json.loads((tmp_path / layers).read_text())["kernels"]
    assert file.startswith("engine/")
    assert (tmp_path / file).stat().st_size > 0


@pytest.mark.parametrize("mask", [None, "full"])
def test_the_attention_operator_is_fused_too(tmp_path: Path, mask: str | None) -> None:
    path = lowered(tmp_path, "rtx-4090", operator=True, mask=mask)
    emitted = emit(path, tmp_path, target=load_target("rtx-4090"), precision="fp16")
    assert emitted.fused == FusedAttention(3, 3)


@pytest.mark.parametrize(
    ("rows", "width", "mask"), [(1, 32, "float"), (9, 264, "float"), (9, 32, "bool")]
)
def test_attention_builds_where_the_operator_has_no_kernel(
    tmp_path: Path, rows: int, width: int, mask: str
) -> None:
    text = f"""
    <ir_version: 11, opset_import: ["":23]>
    g (float[1,2,{rows},{width}] q, float[1,2,9,{width}] k, {mask}[1,1,{rows},9] m)
      => (float[1,2,{rows},{width}] y)
    {{ [att] y = Attention(q, k, k, m) }}
    """
    target = load_target("rtx-3060")
    result = lower(gs.import_onnx(parse(text)), target=target, precision="fp16")
    emit(save(to_onnx(result), tmp_path), tmp_path, target=target, precision="fp16")


def test_probabilities_read_twice_are_named(tmp_path: Path) -> None:
    path = lowered(tmp_path, "rtx-3060", tapped=(1,))
    emitted = emit(path, tmp_path, target=load_target("rtx-3060"), precision="fp16")
    assert emitted.fused == FusedAttention(expected=3, found=2, missing=("block1/softmax",))


@pytest.mark.parametrize("operator", [False, True])
def test_an_attention_left_in_fp32_is_named(tmp_path: Path, operator: bool) -> None:
    if operator:
        keep, name = {"block2/attention"}, "block2/attention/Softmax"
    else:
        keep, name = (
            {f"block2/{each}" for each in ("scores", "scale", "softmax", "mix")},
            ("block2/softmax"),
        )
    path = lowered(tmp_path, "rtx-3060", operator=operator, fp32_nodes=frozenset(keep))
    emitted = emit(path, tmp_path, target=load_target("rtx-3060"), precision="fp16")
    assert emitted.fused == FusedAttention(expected=3, found=2, missing=(name,))


def test_a_softmax_in_fp32_between_fp16_products_stays_fused(tmp_path: Path) -> None:
    path = lowered(tmp_path, "rtx-3060", fp32_nodes=frozenset({"block0/softmax"}))
    emitted = emit(path, tmp_path, target=load_target("rtx-3060"), precision="fp16")
    assert emitted.fused == FusedAttention(3, 3)


def test_fp32_builds_from_the_attention_operator(tmp_path: Path) -> None:
    path = lowered(tmp_path, "l4", "fp32", operator=True)
    emitted = emit(path, tmp_path, target=load_target("l4"), precision="fp32")
    assert emitted.fused is None
    assert "fp32" in emitted.notes[0]


FUNCTIONS = """
<ir_version: 10, opset_import: ["":20, "tcompile":1]>
g (float[B,33,64] x, float[B,33] score) => (float[B,7,64] y, float[B,8,64] z, int64[B,7] index)
{
  [top] index = tcompile.TcTestTop<keep=7>(score)
  [gather] y = tcompile.TcTestGather(x, index)
  [merge] z = tcompile.TcTestMerge<groups=8>(x)
}
<opset_import: ["":20], domain: "tcompile">
TcTestTop <keep> (scores) => (index)
{
  k = Constant<value_int: int=@keep>()
  one = Constant<value_ints=[1]>()
  count = Reshape(k, one)
  values, best = TopK<axis=-1>(scores, count)
  index, order = TopK<axis=-1, largest=0>(best, count)
}
<opset_import: ["":20], domain: "tcompile">
TcTestGather (x, index) => (y)
{
  last = Constant<value_ints=[-1]>()
  rows = Unsqueeze(index, last)
  y = GatherND<batch_dims=1>(x, rows)
}
<opset_import: ["":20], domain: "tcompile">
TcTestMerge <groups> (x) => (y)
{
  zero = Constant<value_int=0>()
  one = Constant<value_int=1>()
  tokens = Constant<value_int=33>()
  count = Constant<value_int: int=@groups>()
  owner = Range(zero, tokens, one)
  group = Mod(owner, count)
  all = Range(zero, count, one)
  last = Constant<value_ints=[1]>()
  column = Unsqueeze(all, last)
  same = Equal(column, group)
  assignment = CastLike(same, x)
  y = MatMul(assignment, x)
}
"""


def test_functions_with_attributes_build(tmp_path: Path) -> None:
    target = load_target("rtx-4090")
    graph = gs.import_onnx(parse(FUNCTIONS))
    result = lower(graph, target=target, precision="fp16", fp32_nodes=frozenset({"top"}))
    types = {node.name: node.outputs[0].dtype for node in result.nodes}
    assert types["gather"] == types["merge"] == np.float16
    emitted = emit(save(to_onnx(result), tmp_path), tmp_path, target=target, precision="fp16")
    assert emitted.fused == FusedAttention(0, 0)


def test_an_operator_it_does_not_know_is_named(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["":18]>
    g (float[4] x) => (int64[1,N] y) { [find] y = NonZero(x) }
    """
    with pytest.raises(ModelError, match=r"node 'find' \(NonZero\)"):
        build(save(parse(text), tmp_path), "8.6")


def test_what_parses_and_cannot_be_built_gives_the_reason(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["":18]>
    g (float[1,5000] x) => (float[1,4000] y, int64[1,4000] i)
    <int64[1] k = {4000}> { [top] y, i = TopK(x, k) }
    """
    with pytest.raises(TcompileError, match=r"3840|maximum") as error:
        build(save(parse(text), tmp_path), "8.6")
    assert not isinstance(error.value, ModelError)


def test_a_free_axis_other_than_the_batch_is_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["":18]>
    g (float[B,N] x) => (float[B,N] y) { y = Neg(x) }
    """
    with pytest.raises(ModelError, match="'x' has a free axis"):
        build(save(parse(text), tmp_path), "8.6")


def test_a_capability_it_does_not_build_for(tmp_path: Path) -> None:
    path = save(attention_blocks(depth=1), tmp_path)
    with pytest.raises(UsageError, match=r"compute capability 8\.7"):
        build(path, "8.7")
    for target in list_targets():
        if target.runtime == "tensorrt-rtx":
            assert target.compute_capability in {"7.5", "8.6", "8.9", "12.0"}


def test_without_tensorrt_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    path = save(attention_blocks(depth=1), tmp_path)
    with pytest.raises(MissingExtraError, match=r"tcompile\[rtx\]"):
        emit(path, tmp_path, target=load_target("rtx-3060"), precision="fp16")
    assert not (tmp_path / "engine").exists()


def test_batch_sizes_have_an_order(tmp_path: Path) -> None:
    path = save(attention_blocks(depth=1), tmp_path)
    with pytest.raises(UsageError, match="smallest <= typical"):
        emit(path, tmp_path, target=load_target("rtx-3060"), precision="fp16", batch=(4, 2, 8))
