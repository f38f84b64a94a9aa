"""Two models are the same whatever their names and order; a difference is found and named."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

from tools.canonical import difference
from tools.compare_builds import compare, compare_all, manifest_difference

TEXT = """
<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
pair (float[2, 3] x, float[2, 3] y) => (float[2, 3] out)
<float[3] w = {1.0, 2.0, 3.0}, float[3] v = {4.0, 5.0, 6.0}>
{
    [first] a = Mul (x, w)
    [second] b = Sub (a, y)
    [third] c = own.Twice (b)
    [last] out = Add (c, v)
}
<opset_import: ["" : 20], domain: "own">
Twice (t) => (u)
{
    two = Constant <value_float = 2.0> ()
    u = Mul (t, two)
}
"""
MANIFEST: dict[str, Any] = {
    "tool": "tcompile 1",
    "target": {"name": "cpu"},
    "source": {"file": "/one/vit.onnx", "sha256": "ab"},
    "files": [{"path": "model.onnx", "sha256": "1"}],
    "latency": [{"model": "dense", "kind": "measured", "milliseconds": 1.0, "spread": None}],
    "kept": {"keep": 0.6},
    "plan": {"gap": 0.0, "steps": [{"before": 50, "ms": 0.5}]},
    "notes": ["takes 3 ms", "was measured on a Monday"],
}


def pair() -> ModelProto:
    return onnx.parser.parse_model(TEXT)


def node(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def respelled() -> ModelProto:
    """With other names throughout, and another order where there is a choice."""
    model = pair()
    renamed = {"a": "p", "b": "q", "c": "r", "w": "k", "v": "l"}
    for one in model.graph.node:
        one.name = f"other/{one.name}"
        one.input[:] = [renamed.get(i, i) for i in one.input]
        one.output[:] = [renamed.get(o, o) for o in one.output]
    for constant in model.graph.initializer:
        constant.name = renamed[constant.name]
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant), constant.name))
    for part in (model.graph.node, model.graph.initializer):
        turned = [deepcopy(p) for p in reversed(part)]
        del part[:]
        part.extend(turned)
    function = model.functions[0]
    function.input[0] = function.node[1].input[0] = "given"
    return model


def test_names_and_order_make_no_difference() -> None:
    assert difference(pair(), pair()) == []
    assert difference(pair(), respelled()) == []


def test_a_constant_that_changed_is_found() -> None:
    changed = respelled()
    constant = next(t for t in changed.graph.initializer if t.name == "k")
    constant.CopyFrom(numpy_helper.from_array(np.float32([1, 2, 4]), "k"))
    found = difference(pair(), changed)
    assert found[0] == "node only in the first: Mul 'first' (x, w) -> a"
    assert found[1] == "node only in the second: Mul 'other/first' (x, k) -> p"
    assert "constant only in the first: w FLOAT[3], 1 in all" in found


def test_inputs_that_changed_places_are_found() -> None:
    swapped = pair()
    node(swapped, "second").input[:] = ["y", "a"]
    found = difference(pair(), swapped)
    assert found[0] == "node only in the first: Sub 'second' (a, y) -> b"
    assert not any("constant" in line for line in found)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: node(m, "third").ClearField("domain"), "Twice"),
        (lambda m: m.graph.node.append(onnx.helper.make_node("Neg", ["x"], ["z"])), "Neg"),
        (lambda m: m.functions[0].node[1].input.reverse(), "function only"),
        (lambda m: setattr(m.opset_import[0], "version", 21), "operator set ai.onnx 21"),
        (lambda m: m.metadata_props.add(key="k", value="1"), "metadata k = 1"),
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim[0].Clear(), "output: out"),
        (
            lambda m: m.graph.value_info.append(onnx.helper.make_tensor_value_info("a", 1, [2, 3])),
            "type of a value",
        ),
    ],
)
def test_every_part_of_a_model_counts(change: Any, word: str) -> None:
    changed = pair()
    change(changed)
    assert any(word in line for line in difference(pair(), changed))


def test_a_manifest_is_compared_but_for_timings_and_paths() -> None:
    other = deepcopy(MANIFEST)
    other["tool"], other["source"]["file"] = "tcompile 2", "/two/vit.onnx"
    other["files"][0]["sha256"], other["latency"][0]["milliseconds"] = "2", 2.0
    other["notes"] = ["takes 4.5 ms"]
    other["plan"]["steps"][0]["ms"] = 0.7
    assert manifest_difference(MANIFEST, other) == ([], [])
    other["kept"]["keep"] = 0.7
    other["notes"] = ["lasts 3 ms"]
    gpu = MANIFEST | {"target": {"name": "gpu"}}
    assert len(manifest_difference(gpu, other | {"target": gpu["target"]})[0]) == 2
    assert manifest_difference(MANIFEST, other) == (
        ["manifest.kept.keep: 0.6 against 0.7"],
        [("takes # ms", "lasts # ms")],
    )


def kept(folder: Path, model: ModelProto | None, error: str = "") -> Path:
    """A build as it is kept: of a model, or refused."""
    folder.mkdir(parents=True)
    result = {"code": int(model is None), "error": error, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    if model is not None:
        onnx.save(model, folder / "model.onnx")
        (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    return folder


def test_builds_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, same = kept(tmp_path / "a/m/topk/cpu", pair()), kept(tmp_path / "b/m/topk/cpu", pair())
    no, never = (kept(tmp_path / f"{s}/m/evit/cpu", None, t) for s, t in (("a", "no"), ("b", "-")))
    assert compare(good, same).kind == "equal"
    assert compare(no, never).lines == ("'no' became '-'",)
    assert compare(no, good).kind == "different"
    assert compare_all(tmp_path / "a", tmp_path / "b") == 0
    assert "1 builds: 'no' became '-'" in capsys.readouterr().out
    kept(tmp_path / "a/m/tome/cpu", pair())
    assert compare_all(tmp_path / "a", tmp_path / "b") == 1
    assert "missing: m/tome/cpu" in capsys.readouterr().out
