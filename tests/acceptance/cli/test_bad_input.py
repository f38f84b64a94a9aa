"""Whatever is wrong with what was asked for: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.command import TOPK, Command, Outcome
from tests.support.tiny_vit import VitSpec, build_vit


def listing() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


def refused(outcome: Outcome, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that says all of `words`."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("tcompile: error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err


def not_onnx(path: Path) -> None:
    path.write_text("hello, I am a text file, and not a short one either\n" * 20)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    data = build_vit(VitSpec()).SerializeToString()
    path.write_bytes(data[: len(data) // 2])


def no_transformer(path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 8])],
        [value("y", TensorProto.FLOAT, [1, 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))


def dynamic_tokens(path: Path) -> None:
    """The same ViT, its image of a free size: how many tokens there are is not known."""
    model = build_vit(VitSpec(prefix=0, pool="none"))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
        dim.dim_param = "side"
    del model.graph.value_info[:]
    onnx.save(model, str(path))


def old_opset(path: Path) -> None:
    model = build_vit(VitSpec())
    model.opset_import[0].version = 8
    onnx.save(model, str(path))


def missing_weights(path: Path) -> None:
    onnx.save(
        build_vit(VitSpec()),
        str(path),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    path.with_name("w.bin").unlink()


def weights_outside(path: Path) -> None:
    onnx.save(
        build_vit(VitSpec()),
        str(path),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../etc/passwd"
    path.with_name("w.bin").unlink()
    onnx.save(model, str(path))


@pytest.mark.parametrize("command", ["build", "plan", "inspect"])
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (not_onnx, "not an ONNX file"),
        (empty, "not an ONNX file"),
        (truncated, "not an ONNX file"),
        (no_transformer, "transformer"),
        (dynamic_tokens, "bad.onnx"),
        (old_opset, "opset 8"),
        (missing_weights, "w.bin"),
        (weights_outside, "outside the model's folder"),
    ],
)
def test_bad_model(
    tcompile: Command, vit: Path, make: Callable[[Path], None], word: str, command: str
) -> None:
    make(Path("bad.onnx"))
    before = listing()
    budget = [] if command == "inspect" else ["--target", "cpu", "--keep", "0.6"]
    refused(tcompile(command, "bad.onnx", *budget), "bad.onnx", word)
    assert listing() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.onnx", "--keep", "0.6"], ["nothing.onnx", "no such file"]),
        ([".", "--keep", "0.6"], ["directory"]),
        (["vit.onnx"], ["--keep", "no budget"]),
        (["vit.onnx", "--keep", "0"], ["--keep"]),
        (["vit.onnx", "--keep", "1.01"], ["--keep"]),
        (["vit.onnx", "--keep", "-0.5"], ["--keep"]),
        (["vit.onnx", "--keep", "nan"], ["--keep"]),
        (["vit.onnx", "--keep", "most"], ["--keep", "most"]),
        (["vit.onnx", "--keep", "0.6", "--target", "rtx-4091"], ["rtx-4091", "rtx-4090"]),
        (["vit.onnx", "--keep", "0.6", "--method", "tomme"], ["tomme", "tome"]),
        (["vit.onnx", "--keep", "0.6", "--method", "topk:blok=3"], ["blok"]),
        (["vit.onnx", "--keep", "0.6", "--method", "tome:r=3"], ["tome"]),
        (["vit.onnx", "--keep", "0.6", "--method", "topk:block=99"], ["99"]),
        (["vit.onnx", "--keep", "0.6", "--precision", "fp12"], ["fp12"]),
        (["vit.onnx", "--keep", "0.6", "--outputs", "some"], ["some"]),
        (["vit.onnx", "--schedule", "nothing.json"], ["nothing.json"]),
        (["vit.onnx", "--keep", "0.6", "--colour", "red"], ["--colour"]),
        ([], ["MODEL"]),
    ],
)
def test_bad_arguments(
    tcompile: Command, vit: Path, arguments: list[str], words: list[str]
) -> None:
    before = listing()
    target = [] if "--target" in arguments else ["--target", "cpu"]
    refused(tcompile("build", *arguments, *target), *words)
    assert listing() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 9, "model": {}, "reductions": []}']
)
def test_bad_schedule(tcompile: Command, vit: Path, text: str) -> None:
    Path("s.json").write_text(text)
    before = listing()
    refused(tcompile("build", vit, "--target", "cpu", "--schedule", "s.json"), "s.json")
    assert listing() == before


@pytest.mark.parametrize("option", ["--schedule", "--profile", "--calibration"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "deep", "digits"])
def test_files_that_would_never_end(tcompile: Command, vit: Path, option: str, kind: str) -> None:
    path = Path(kind) if kind.startswith("/") else Path("odd.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "/dev/zero":
        path.write_text("[" * 100_000 if kind == "deep" else "9" * 10_000)
    before = listing()
    budget = [] if option == "--schedule" else ["--keep", "0.6"]
    shown = tcompile("build", vit, "--target", "cpu", *budget, option, path)
    refused(shown, str(path))
    assert len(shown.err) < 400
    assert listing() == before


@pytest.mark.parametrize(
    "line",
    [
        "plan loop --target cpu --keep 0.6",
        "build vit.onnx --target cpu --keep 0.6 --method topk -o loop",
        "build vit.onnx --target cpu --keep 0.6 --method topk -o loop/x",
        "build vit.onnx --target cpu --keep 0.6 --method topk --dump loop",
        "plan vit.onnx --target cpu --keep 0.6 --method fitprune --calibration loop",
        "run vit.onnx --input loop",
        "run vit.onnx --input folder --preprocess unit",
        "demo -o loop",
    ],
)
@pytest.mark.usefixtures("vit")
def test_links_that_lead_back_to_themselves(tcompile: Command, line: str) -> None:
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("folder/x.png").symlink_to("x.png")
    Path("folder/again").symlink_to(".")
    before = listing()
    refused(tcompile(*line.split()))
    assert listing() == before


def test_schedule_for_another_model(tcompile: Command, vit: Path) -> None:
    made = tcompile("plan", vit, *TOPK, "--keep", "0.6", "--json").json()
    made["model"]["tokens"] += 1
    made["model"]["patches"] += 1
    Path("s.json").write_text(json.dumps(made))
    before = listing()
    refused(tcompile("build", vit, "--target", "cpu", "--schedule", "s.json"), "tokens")
    assert listing() == before


def test_foreign_directory(tcompile: Command, vit: Path) -> None:
    Path("mine").mkdir()
    Path("mine/diary.txt").write_text("dear diary")
    before = listing()
    for force in ([], ["--force"]):
        built = tcompile("build", vit, "--target", "cpu", "--keep", "0.6", "-o", "mine", *force)
        refused(built, "mine", "not a tcompile artifact")
    assert listing() == before


def test_a_file_where_the_artifact_should_go(tcompile: Command, vit: Path) -> None:
    built = tcompile("build", vit, "--target", "cpu", "--keep", "0.6", "-o", "vit.onnx")
    refused(built, "vit.onnx", "not a directory")


def test_missing_extra(tcompile: Command, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(
        tcompile("export", "zoo:glyphs", "-o", "out.onnx"),
        "torch",
        "pip install 'tcompile[export]'",
    )
    assert not Path("out.onnx").exists()


def test_missing_runtime(tcompile: Command, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    np.save("x.npy", np.zeros((1, 3, 32, 32), dtype=np.float32))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(tcompile("run", vit, "--input", "x.npy"), "onnxruntime", "pip install 'tcompile[cpu]'")


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_not_an_artifact(tcompile: Command, vit: Path, command: str) -> None:
    Path("empty").mkdir()
    refused(tcompile(command, "empty"), "empty", "not a tcompile artifact")
    refused(tcompile(command, "nowhere"), "nowhere", "no such directory")


def test_bad_input_for_run(tcompile: Command, vit: Path) -> None:
    Path("cat.png").write_text("no picture")
    refused(tcompile("run", vit, "--input", "cat.png"))
    refused(tcompile("run", vit, "--input", "nothing.npy"), "nothing.npy", "no such file")
