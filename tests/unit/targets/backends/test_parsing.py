"""Nodes that a TensorRT parser refuses are refused before anything is written, in the user's own
names."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.artifact.directory import load_artifact
from tcompile.core import interrupt
from tcompile.core.errors import InternalError, ModelError, TcompileError
from tcompile.passes.lower import lower
from tcompile.passes.normalize import normalize
from tcompile.pipeline import building
from tcompile.targets.backends import trt_common
from tcompile.targets.backends.base import EngineError, ParseError
from tcompile.targets.backends.ort import OrtRunner
from tcompile.targets.backends.parsing import ONLY_TENSORRT, parse_elsewhere
from tcompile.verify.owners import Owners, blamed
from tests.support.command import Command
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit
from tests.unit.passes.lower.blocks import parse, save

pytest.importorskip("tensorrt_rtx")
HEAD = '<ir_version: 10, opset_import: ["":20, "acme":1]>\n'
SPEC = VitSpec(depth=2, image=32)
TARGETS = ("jetson-orin", "rtx-4090")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def front(
    nodes: Sequence[tuple[Any, ...]], kind: int, shape: Sequence[int], **weights: Any
) -> Path:
    """A ViT behind a few nodes of the user's: (operator, inputs, output, attributes).

    The first reads `frame`, the last gives `image`; nodes are called after what they give.
    """
    model = build_vit(SPEC, random_weights(SPEC, 0), batch=1)
    for op, inputs, output, attrs in reversed(nodes):
        node = onnx.helper.make_node(op, inputs, [output], output, **attrs)
        model.graph.node.insert(0, node)
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    del model.graph.input[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info("frame", kind, shape))
    onnx.save(model, "camera.onnx")
    return Path("camera.onnx")


U8, I8, F32, F64 = (
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
)
SCALE: list[tuple[Any, ...]] = [
    ("Cast", ["pixels"], "float", {"to": F32}),
    ("Sub", ["float", "middle"], "zero", {}),
    ("Div", ["zero", "middle"], "image", {}),
]
MIDDLE = {"middle": np.float32(127.5)}


@pytest.mark.parametrize("target", TARGETS)
def test_a_camera_frame_is_taken_as_it_comes(target: str) -> None:
    """uint8, channels last, BGR, cropped: what is moved before the cast. tests/passes/lower has
    each by itself."""
    weights = {
        "from": np.array([4, 8]),
        "to": np.array([36, 40]),
        "axes": np.array([1, 2]),
        "order": np.array([2, 1, 0]),
        **MIDDLE,
    }
    moves: list[tuple[Any, ...]] = [
        ("Slice", ["frame", "from", "to", "axes"], "part", {}),
        ("Gather", ["part", "order"], "colours", {"axis": 3}),
        ("Transpose", ["colours"], "pixels", {"perm": [0, 3, 1, 2]}),
    ]
    source = front([*moves, *SCALE], U8, [1, 40, 48, 3], **weights)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 40, 48, 3)).astype(np.uint8)
    built = pipeline.build(source, target=target, precision="fp32", keep=1, output="out")
    (ours,) = OrtRunner(built / "model.onnx").run({"frame": pixels}).values()
    (dense,) = OrtRunner(source).run({"frame": pixels}).values()
    np.testing.assert_array_equal(ours, dense)
    half = pipeline.build(source, target=target, keep=0.6, method="topk", output="out")
    assert load_artifact(half).manifest.inputs[0].dtype == "uint8"


#: What TensorRT cannot parse, with the node that is to be named and a word of the remedy.
REFUSED: dict[str, tuple[list[tuple[Any, ...]], int, dict[str, Any], str, str]] = {
    "pixels computed with in 8 bits": (
        [("Div", ["frame", "two"], "pixels", {}), *SCALE],
        U8,
        {"two": np.uint8(2), **MIDDLE},
        "pixels",
        "cast the image to float",
    ),
    "pixels shifted": (
        [("BitShift", ["frame", "two"], "pixels", {"direction": "RIGHT"}), *SCALE],
        U8,
        {"two": np.uint8(2), **MIDDLE},
        "pixels",
        "keep-failed",
    ),
    "asymmetric Q/DQ, uint8": (
        [
            ("QuantizeLinear", ["frame", "step", "zero"], "q", {}),
            ("DequantizeLinear", ["q", "step", "zero"], "image", {}),
        ],
        F32,
        {"step": np.float32(0.02), "zero": np.uint8(128)},
        "q",
        "symmetrically",
    ),
    "asymmetric Q/DQ, int8": (
        [
            ("QuantizeLinear", ["frame", "step", "zero"], "q", {}),
            ("DequantizeLinear", ["q", "step", "zero"], "image", {}),
        ],
        F32,
        {"step": np.float32(0.02), "zero": np.int8(3)},
        "q",
        "symmetrically",
    ),
    "through strings": (
        [
            ("Cast", ["frame"], "text", {"to": onnx.TensorProto.STRING}),
            ("Cast", ["text"], "image", {"to": F32}),
        ],
        F32,
        {},
        "text",
        "keep-failed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_users_node_is_named_and_nothing_written(case: str) -> None:
    target = TARGETS[list(REFUSED).index(case) % 2]
    nodes, kind, weights, node, remedy = REFUSED[case]
    source = front(nodes, kind, [1, 3, 32, 32], **weights)
    with pytest.raises(ModelError) as raised:
        pipeline.build(
            source, target=target, precision="fp32", keep=0.6, method="topk", output="out"
        )
    error = raised.value
    assert error.exit_code == 2
    assert error.where == "camera.onnx"
    assert f"node '{node}'" in error.what
    assert remedy in error.hint
    assert "/tmp" not in str(error)
    assert sorted(p.name for p in Path().iterdir()) == ["camera.onnx"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_flag_keeps_it(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, kind, weights, _, _ = REFUSED["pixels shifted"]
    source = front(nodes, kind, [1, 3, 32, 32], **weights)
    command = [
        "build",
        str(source),
        "--target",
        target,
        "--keep",
        "0.6",
        "--method",
        "topk",
        "-o",
        "out",
    ]
    refused = Command(capsys)(*command)
    assert refused.code == 2
    assert "camera.onnx" in refused.err
    assert not Path("out").exists()
    assert Command(capsys)(*command, "--keep-failed").code == 1
    assert "BitShift" in json.loads(Path("out/manifest.json").read_text())["fault"]
    assert "BitShift" in Path("out/report.md").read_text().splitlines()[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (
            I8,
            [
                ("Transpose", ["frame"], "turned", {"perm": [0, 1, 3, 2]}),
                ("Cast", ["turned"], "image", {"to": F32}),
            ],
        ),
        (F64, [("Abs", ["frame"], "root", {}), ("Cast", ["root"], "image", {"to": F32})]),
    ],
)
def test_other_types_that_it_does_take(kind: int, before: list[Any], target: str) -> None:
    source = front(before, kind, [1, 3, 32, 32])
    try:
        built = pipeline.build(source, target=target, keep=0.6, method="topk", output="out")
    except ModelError as error:
        assert kind == F64, error  # noqa: PT017 - normal form has no fp64, and says so
    else:
        assert load_artifact(built).manifest.fault is None


@pytest.mark.parametrize("target", TARGETS)
def test_a_node_of_ours_is_our_fault(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **options: Any) -> gs.Graph:
        graph = lower(*args, **options)
        image = graph.inputs[0]
        eight, shifted = (gs.Variable(f"tcompile/{n}", np.uint8) for n in ("eight", "shifted"))
        wide = gs.Variable("tcompile/wide", np.float32, image.shape)
        for node in list(image.outputs):
            node.inputs[0] = wide
        one = gs.Constant("tcompile/one", np.array(0, np.uint8))
        graph.nodes[:0] = [
            gs.Node("Cast", "tcompile/a", {"to": int(U8)}, [image], [eight]),
            gs.Node("BitShift", "tcompile/b", {"direction": "LEFT"}, [eight, one], [shifted]),
            gs.Node("Cast", "tcompile/c", {"to": int(F32)}, [shifted], [wide]),
        ]
        return graph

    monkeypatch.setattr(building, "lower", wrong)
    monkeypatch.setattr("tcompile.verify.lowered._worst", lambda *a: None)
    onnx.save(build_vit(SPEC, random_weights(SPEC, 0), batch=1), "vit.onnx")
    with pytest.raises(InternalError, match="tcompile/a") as raised:
        pipeline.build("vit.onnx", target=target, keep=0.6, method="topk", output="out")
    assert raised.value.exit_code == 1
    assert raised.value.where == "vit.onnx"
    assert "report it" in raised.value.hint
    assert sorted(p.name for p in Path().iterdir()) == ["vit.onnx"]


def test_what_parses_and_does_not_build_is_blamed_on_its_node() -> None:
    """A TopK of more than 3840 elements is the user's, and only the builder knows of it."""
    model = build_vit(SPEC, random_weights(SPEC, 0), batch=1)
    graph = model.graph
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array([1, 5000]), "wide"),
            onnx.numpy_helper.from_array(np.array([4000]), "many"),
            onnx.numpy_helper.from_array(np.array([0]), "first"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
        ]
    )
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Slice", ["logits", "first", "one", "one"], ["single"], "single"),
            make("Expand", ["single", "wide"], ["all"], "all"),
            make("TopK", ["all", "many"], ["best", "where"], "best_of_all"),
        ]
    )
    graph.output.append(onnx.helper.make_tensor_value_info("best", F32, [1, 4000]))
    onnx.save(model, "ranked.onnx")
    with pytest.raises(TcompileError, match=r"3840|maximum") as raised:
        pipeline.build("ranked.onnx", target="rtx-4090", keep=0.6, method="topk", output="out")
    assert raised.value.where == "ranked.onnx"
    assert "best_of_all" in raised.value.what
    assert raised.value.exit_code == 2
    assert not Path("out").exists()


def test_what_names_no_node_is_said_of_the_model() -> None:
    """Nothing tells whose node it is."""
    model = build_vit(SPEC, random_weights(SPEC, 0), batch=1)
    onnx.save(model, "vit.onnx")
    refused = ParseError("TensorRT 10.13", "it gave no reason")
    found = blamed(refused, Owners(Path("vit.onnx"), normalize(model).graph), "vit.onnx")
    assert found.what == "TensorRT 10.13 does not accept the model: it gave no reason"
    assert (found.exit_code, found.where) == (1, "vit.onnx")


NOTED = {
    "NonZero": "g (float[4] x) => (int64[1,N] y) { [find] y = NonZero(x) }",
    "ScatterElements": """g (float[4,4] x, int64[2,4] i, float[2,4] u) => (float[4,4] y)
        { [find] y = ScatterElements<axis=0, reduction="add">(x, i, u) }""",
    "RoiAlign": """g (float[1,4,8,8] x, float[2,4] r, int64[2] b) => (float[2,4,2,2] y)
        { [find] y = RoiAlign<output_height=2, output_width=2>(x, r, b) }""",
    "DeformConv": """g (float[1,4,8,8] x, float[4,4,3,3] w, float[1,18,6,6] o)
        => (float[1,4,6,6] y) { [find] y = DeformConv(x, w, o) }""",
    "EfficientNMS_TRT": "g (float[4] x) => (float[4] y) { [find] y = acme.EfficientNMS_TRT(x) }",
}


@pytest.mark.parametrize("op", NOTED)
def test_what_only_tensorrt_takes_is_a_note(op: str, tmp_path: Path) -> None:
    assert any(each.op in (op, "") for each in ONLY_TENSORRT)
    (note,) = parse_elsewhere(save(parse(HEAD + NOTED[op]), tmp_path))
    assert f"'find' ({op})" in note


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4,4] x) => (float y) { [bad] y = Det(x) }",
        """g (float[4,4] x, int64[2,1] i, float[2,4] u) => (float[4,4] y)
       { [bad] y = ScatterND<reduction="add">(x, i, u) }""",
        "g (uint8[2,3] u) => (uint8[3,2] v) { [bad] v = Transpose<perm=[1,0]>(u) }",
    ],
)
def test_the_rest_is_parsed_behind_a_note(text: str, tmp_path: Path) -> None:
    both = text.replace("g (", "g (float[4] n, ").replace(") {", ", int64[1,N] m) {")
    both = both.replace(")\n       {", ", int64[1,N] m)\n {")
    both = both.replace("{ [bad]", "{ [find] m = NonZero(n)\n [bad]")
    with pytest.raises(ParseError, match="node 'bad'"):
        parse_elsewhere(save(parse(HEAD + both), tmp_path))


def test_without_the_package_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    onnx.save(build_vit(SPEC, random_weights(SPEC, 0), batch=1), "vit.onnx")
    built = pipeline.build("vit.onnx", target="jetson-orin", keep=0.6, method="topk", output="out")
    assert any("not parsed" in note for note in load_artifact(built).manifest.notes)


def test_a_reason_is_short_and_of_the_model() -> None:
    error = EngineError("T 1", "Invalid Node - a IB::build: Error Code 4: x In f at /_src/a.cpp:1")
    assert error.what == "T 1 cannot build an engine: x"
    assert len(ParseError("T 1", "long " * 500, node="n", op="Op").what) < 500


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Assertion failed: false", "it gives no reason"),
        ("", "it gives no reason"),
        ("Assertion failed: axis < 4 && false", "axis < 4 && false"),
    ],
)
def test_a_reason_that_says_nothing_is_not_repeated(given: str, told: str) -> None:
    error = ParseError("TensorRT", given, node="mine", op="BitwiseAnd")
    assert str(error) == f"TensorRT does not accept node 'mine' (BitwiseAnd): {told}"


def test_an_interrupt_in_a_message_of_tensorrt_is_not_printed_and_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT prints a traceback of what its logger raises, and goes on with its work."""
    import tensorrt_rtx as trt

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(interrupt, "_received", None)
    monkeypatch.setattr(trt_common.logger, "log", interrupted)
    with interrupt.listening():
        trt_common._log_of(trt).native.log(trt.ILogger.INFO, "a step")
        with pytest.raises(KeyboardInterrupt):
            trt_common.build_plan(trt, save_tiny_vit(Path("vit.onnx")))
