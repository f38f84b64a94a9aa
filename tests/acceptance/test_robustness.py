"""Any graph at all: refused in one line, or right (tests/support/judge.py).

Damaged and respelled models by the hundred (tests/support/fuzz.py), half exports, quantised models,
control flow, local functions, and networks that are no transformers (tests/support/foreign.py).
TCOMPILE_FUZZ=N tries N damaged models in place of a handful.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tcompile import pipeline
from tcompile.core.errors import ModelError, TcompileError
from tests.oracles.exports import exported, selection
from tests.support.foreign import NETWORKS, write
from tests.support.fuzz import MUTATIONS, Mutation, mutate
from tests.support.fuzz_draft import Draft
from tests.support.fuzz_spelling import in_branches, in_function, in_loop
from tests.support.judge import Outcome, judge
from tests.support.tiny_vit import VitSpec, build_vit, random_weights
from tests.support.zoo_matrix import BY_ID

METHODS = ("topk", "topk:block=0,site=block", "topk:site=output", "tome", "evit", "bypass")
#: How many damaged models, in parts, so that workers can share them.
MANY = int(os.environ.get("TCOMPILE_FUZZ", "30"))
PARTS = 3


def tiny(prefix: int = 1, batch: int | None = 1, pool: str = "cls") -> onnx.ModelProto:
    spec = VitSpec(image=24, width=16, depth=2, prefix=prefix, pool=pool)  # type: ignore[arg-type]
    return build_vit(spec, random_weights(spec), batch=batch)


TINY = [
    {"prefix": prefix, "batch": batch, "pool": pool}
    for prefix in (1, 3)
    for batch in (1, None)
    for pool in ("cls", "avg", "none")
]
EXPORTED = ("open-clip-tokens", "timm-eva02")


def tried(model: onnx.ModelProto, path: Path, method: str) -> Outcome:
    path.write_bytes(model.SerializeToString())
    return judge(path, method)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_models(part: int, tmp_path: Path) -> None:
    """Two methods run on each model; one is topk, which has an oracle."""
    kinds = set()
    for seed in range(part, MANY, PARTS):
        model, log = mutate(tiny(**TINY[seed % len(TINY)]), seed)  # type: ignore[arg-type]
        for method in (METHODS[seed % len(METHODS)], "topk"):
            try:
                kinds.add(tried(model, tmp_path / f"{seed}.onnx", method).kind)
            except Exception as error:
                raise AssertionError(f"seed {seed}, {method}: {'; '.join(log)}") from error
    assert {"refused", "equal"} <= kinds


@pytest.mark.parametrize("case_id", EXPORTED)
def test_damaged_exports(case_id: str, cache: Path, tmp_path: Path) -> None:
    case = BY_ID[case_id]
    source = onnx.load(exported(case, selection(case)[0], cache))
    for seed in range(max(2, MANY // 30)):
        model, log = mutate(source, seed)
        try:
            tried(model, tmp_path / "model.onnx", METHODS[seed % len(METHODS)])
        except Exception as error:
            raise AssertionError(f"seed {seed}: {'; '.join(log)}") from error


def test_every_kind_of_damage_finds_something_to_do() -> None:
    for name in MUTATIONS:
        assert any(mutate(tiny(), seed, [name])[1] for seed in range(30)), name


# ---- what has a name -----------------------------------------------------------------------------


def changed(change: Mutation, seed: int) -> onnx.ModelProto:
    import random

    draft = Draft(tiny(batch=None), random.Random(seed))
    assert change(draft) is not None
    return draft.model


def test_a_branch_decided_at_run_time_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    seed = next(s for s in range(50) if "Greater" in str(changed(in_branches, s).graph.node))
    path.write_bytes(changed(in_branches, seed).SerializeToString())
    with pytest.raises(ModelError, match=r"If 'fuzz_.*' decides at run time"):
        pipeline.reduce(path, keep=0.5, method="topk")


def test_a_branch_decided_beforehand_is_taken(tmp_path: Path) -> None:
    seeds = [s for s in range(40) if "Greater" not in str(changed(in_branches, s).graph.node)]
    for seed in seeds[:2]:
        outcome = tried(changed(in_branches, seed), tmp_path / "model.onnx", "topk")
        assert outcome.kind == "equal"


def test_a_loop_is_refused_by_name(tmp_path: Path) -> None:
    outcome = tried(changed(in_loop, 1), tmp_path / "model.onnx", "topk")
    assert "Loop 'fuzz_" in outcome.note


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    for seed in range(4):
        outcome = tried(changed(in_function, seed), tmp_path / "model.onnx", "topk")
        assert outcome.kind == "equal"


def half(model: onnx.ModelProto, nodes: int) -> onnx.ModelProto:
    """The first nodes alone; what nobody reads any more is the output."""
    del model.graph.node[nodes:]
    read = {name for node in model.graph.node for name in node.input}
    loose = [name for node in model.graph.node for name in node.output if name not in read]
    del model.graph.output[:]
    for name in loose:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    return model


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_half_exports(method: str, tmp_path: Path) -> None:
    whole = len(tiny().graph.node)
    for nodes in range(3, whole, 9):
        tried(half(tiny(), nodes), tmp_path / "model.onnx", method)


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear around the inputs of every MatMul."""
    nodes: list[onnx.NodeProto] = []
    scale = numpy_helper.from_array(np.float32(0.05), "scale")
    model.graph.initializer.append(scale)
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    for node in model.graph.node:
        if node.op_type == "MatMul":
            for i, name in enumerate(node.input):
                q, d = f"{node.name}/{i}/q", f"{node.name}/{i}/d"
                nodes += [
                    onnx.helper.make_node("QuantizeLinear", [name, "scale", "zero"], [q], q),
                    onnx.helper.make_node("DequantizeLinear", [q, "scale", "zero"], [d], d),
                ]
                node.input[i] = d
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("pool", ["cls", "avg", "none"])
def test_quantised_models(pool: str, tmp_path: Path) -> None:
    outcome = tried(quantised(tiny(pool=pool)), tmp_path / "model.onnx", "topk")
    assert outcome.kind == "equal"
    for method in ("tome", "evit"):
        tried(quantised(tiny(pool=pool)), tmp_path / "model.onnx", method)


#: Networks without a token axis that attention runs over, with words of the refusal.
NO_TRANSFORMER = {
    "convnet": "no transformer",
    "convnext": "no transformer",
    "mlp": "no transformer",
    "mixer": "no transformer",
    "lstm": "no transformer",
    "gru": "no transformer",
    "rnn": "no transformer",
    "linear-attention": "no transformer",
    "detector": "no transformer",
    "segmenter": "ConvTranspose",
    "lstm-as-mlp": "LSTM",
}
#: Those that can lose tokens, and whose masked-dense oracle agrees.
RIGHT = ("vit", "pooling", "causal", "decoder", "sound", "softmax-over-queries")
#: Those whose map stays whole while some tokens pass a block by.
BYPASSED = ("vit", "segmenter", "conv-in-mlp", "windows-and-global")


@pytest.fixture(scope="module")
def foreign(cache: Path) -> Path:
    folder = cache / "foreign"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_kinds(name: str, foreign: Path) -> None:
    path = foreign / f"{name}.onnx"
    write(name, path)
    for method in ("topk", "topk:block=0,site=block", "tome", "evit", "bypass"):
        outcome = judge(path, method)
        if method == "bypass":
            assert outcome.kind == "equal" or name not in BYPASSED
        elif name in NO_TRANSFORMER:
            assert outcome.kind == "refused"
            assert NO_TRANSFORMER[name] in outcome.note
        if name in RIGHT and method.startswith("topk"):
            assert outcome.kind == "equal"


def test_every_error_has_an_exit_code_and_one_line(tmp_path: Path) -> None:
    """What a person sees of a damaged file."""
    for seed in range(1000, 1020):
        model, _ = mutate(tiny(), seed)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        found: TcompileError | None = None
        try:
            pipeline.plan(path, keep=0.5, method="topk")
        except TcompileError as error:
            found = error
        assert found is None or (found.exit_code == 2 and "\n" not in found.one_line())
