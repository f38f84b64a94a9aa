"""Token ops in standard operators: the same values, names that tell whose they are, nothing else of
tcompile's in the file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from benchmarks.gpu.cases import Case, cases
from benchmarks.gpu.compare import problems
from tcompile import pipeline
from tcompile.core.domain import DOMAIN
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.passes.lower.inline import inline_calls
from tcompile.passes.stages import Reduced
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import TokenOp
from tcompile.runtime.samples import run_all
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.runtime.token_outputs import showing_choice
from tcompile.targets import load_target
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit

METHODS = {
    "topk": {"method": "topk", "keep": 0.5},
    "evit": {"method": "evit", "keep": 0.5},
    "tome": {"method": "tome:r=3"},
    "pitome": {"method": "pitome", "keep": 0.6},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("vit") / "vit.onnx", batch=None)


@pytest.fixture(scope="module", params=METHODS)
def reduced(request: pytest.FixtureRequest, source: Path) -> Reduced:
    return pipeline.reduce(source, **METHODS[request.param])


def plain(reduced: Reduced, path: Path, precision: str = "fp32") -> Path:
    """The file of a build for the CPU."""
    graph = lower(
        reduced.graph,
        target=load_target("cpu"),
        precision=precision,  # type: ignore[arg-type]
        fp32_nodes=reduced.fp32_nodes,
    )
    save(graph, path, reduced.metadata)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_is_plain_onnx(reduced: Reduced, tmp_path: Path, precision: str) -> None:
    model = onnx.load(plain(reduced, tmp_path / "plain.onnx", precision))
    onnx.checker.check_model(model, full_check=True)
    assert len(model.functions) == 0
    assert [o.domain for o in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    nodes = [node.name for node in model.graph.node]
    tensors = [name for node in model.graph.node for name in node.output if name]
    tensors += [t.name for t in model.graph.initializer]
    assert max(Counter(nodes).values()) == max(Counter(tensors).values()) == 1
    assert all(re.fullmatch(r"[\x20-\x7e]+", name) for name in nodes)
    assert any(isinstance(d.dim_param, str) and d.dim_param == "batch" for d in dims(model))


def dims(model: onnx.ModelProto) -> list[Any]:
    """Every first dim of what lies inside of a token op."""
    inner = (v for v in model.graph.value_info if re.search(r"/Tc\w+/", v.name))
    return [v.type.tensor_type.shape.dim[0] for v in inner if v.type.tensor_type.shape.dim]


def test_nodes_are_named_after_their_call(reduced: Reduced, tmp_path: Path) -> None:
    model = onnx.load(plain(reduced, tmp_path / "plain.onnx"))
    calls = [node for node in reduced.graph.nodes if node.domain == DOMAIN]
    given = {name: node for node in model.graph.node for name in node.output}
    for call in calls:
        assert f"/{call.op}" in call.name
        # A merge gives the whole stream, which its result was joined to, and all sizes.
        names = [t.name for t in call.outputs if t.name in given or call.op != "TcMergeTokens"]
        assert all(given[name].name.startswith(f"{call.name}/") for name in names)
    others = {node.name for node in reduced.graph.nodes if node.domain != DOMAIN}
    inner = [n.name for n in model.graph.node if n.name not in others]
    assert all(any(name.startswith(f"{call.name}/") for call in calls) for name in inner)


def test_it_computes_what_the_functions_do(reduced: Reduced, tmp_path: Path) -> None:
    path = plain(reduced, tmp_path / "plain.onnx")
    save(reduced.graph, tmp_path / "calls.onnx", reduced.metadata)
    samples = scenes_for(signature(path), count=3)
    want, have = run_all(tmp_path / "calls.onnx", samples), run_all(path, samples)
    for name, array in want.items():
        np.testing.assert_allclose(have[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduced", ["topk", "evit", "tome"], indirect=True)
def test_it_tells_its_tokens_as_the_functions_do(reduced: Reduced, tmp_path: Path) -> None:
    path = plain(reduced, tmp_path / "plain.onnx")
    calls, bare = tmp_path / "calls.onnx", tmp_path / "bare.onnx"
    save(reduced.graph, calls, reduced.metadata)
    save(reduced.graph, bare)  # as of a file without metadata
    samples = scenes_for(signature(path), count=2)
    told = []
    for each in (path, calls, bare):
        with showing_choice(each) as shown:
            told.append({n: a for n, a in run_all(shown, samples).items() if "tcompile." in n})
    assert told[0]
    for other in told[1:]:
        assert set(other) == set(told[0])
        assert all(np.array_equal(other[name], array) for name, array in told[0].items())


def test_a_record_of_other_tensors_is_passed_over(source: Path, tmp_path: Path) -> None:
    save(pipeline.reduce(source, keep=0.5, method="topk").graph, tmp_path / "x.onnx")
    model = onnx.load(tmp_path / "x.onnx")
    model.metadata_props.add(key="tcompile.choice", value='{"tcompile.chosen": "no such tensor"}')
    onnx.save(model, tmp_path / "x.onnx")
    with showing_choice(tmp_path / "x.onnx") as shown:
        assert shown == tmp_path / "x.onnx"


def test_tensorrt_keeps_its_functions(source: Path) -> None:
    reduced = pipeline.reduce(source, keep=0.5, method="topk")
    for target in ("rtx-4090", "jetson-orin"):
        graph = lower(reduced.graph, target=load_target(target), precision="fp32")
        assert {f.name for f in graph.functions} == {"TcTopKTokens", "TcGatherTokens"}
    assert reduced.graph.functions, "the caller's graph was changed"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_by_itself(op: TokenOp) -> None:
    """Against numpy; of two calls in one graph, whose names must not meet."""
    found = (c for c in cases(op, 60, 7, ("f32",)) if c.finite)
    case = next(c for c in found if max(map(max, (a.shape for a in c.inputs))) < 100)
    for got in twice(case):
        assert not problems(case, got), str(case)


def twice(case: Case) -> list[tuple[Any, ...]]:
    inputs = [
        gs.Variable(t.name, a.dtype, a.shape)
        for t, a in zip(case.op.takes, case.inputs, strict=True)
    ]
    nodes, ends = [], []
    for i in range(2):
        numbers = {k: gs.Constant(k, np.asarray([v], np.int64)) for k, v in case.numbers.items()}
        outputs = [
            gs.Variable(f"{t.name}{i}", np.int64 if t.kind == "index" else np.float32)
            for t in case.op.gives
        ]
        nodes.append(gs.Node(case.op.name, f"call{i}", numbers, inputs, outputs, DOMAIN))
        ends.append(outputs)
    graph = gs.Graph(nodes, inputs, [t for each in ends for t in each], opset=18)
    graph.ir_version = 10
    assert inline_calls(graph) == 2
    model = onnx.shape_inference.infer_shapes(to_onnx(graph), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {t.name: a for t, a in zip(inputs, case.inputs, strict=True)}
    given = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    return [tuple(given[t.name] for t in each) for each in ends]


def test_names_that_are_taken(tmp_path: Path) -> None:
    score = gs.Variable("score", np.float32, (1, 9))
    index = gs.Variable("index", np.int64, (1, 4))
    call = gs.Node(
        "TcTopKTokens",
        "call",
        {"k": gs.Constant("k", np.asarray([4], np.int64))},
        [score],
        [index],
        DOMAIN,
    )
    user = gs.Variable("call/best", np.float32, (1, 9))
    other = gs.Node("Neg", "call/TopK_1", {}, [score], [user])
    graph = gs.Graph([call, other], [score], [index, user], opset=18)
    inline_calls(graph)
    names = [node.name for node in graph.nodes]
    assert "call/TopK_1_" in names
    assert len(set(names)) == len(names)
    assert [t.name for n in graph.nodes for t in n.outputs].count("call/best") == 1


def test_a_model_of_a_large_spec_shares_no_shapes(tmp_path: Path) -> None:
    """Bodies are kept by the shapes of a call: those of one model are not those of another."""
    for image in (32, 48):
        path = save_tiny_vit(tmp_path / f"{image}.onnx", VitSpec(image=image, depth=1))
        made = plain(pipeline.reduce(path, keep=0.5, method="topk"), tmp_path / f"p{image}.onnx")
        assert run_all(made, scenes_for(signature(made), count=1))
