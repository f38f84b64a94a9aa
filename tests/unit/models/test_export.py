"""Exports are right, say what they are, and leave nothing behind when they fail.

A handful of combinations; the whole matrix is `tests/support/zoo_matrix.py`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tcompile.core.errors import MissingExtraError, ModelError, UsageError
from tcompile.models import export, files, load_source, recipes
from tcompile.models.known import KNOWN, KnownFailure
from tcompile.models.preprocess import PREPROCESS_KEY, SOURCE_KEY
from tests.support.zoo_matrix import BY_ID, Variant, export_cached, load_case

HERE = "tests.unit.models.tiny_sources"
TINY: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def _tiny(source: str = "timm:vit_tiny_patch16_224", **options: Any) -> Any:
    return load_source(source, random_weights=True, image_size=32, overrides={**TINY, **options})


def _ops(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("case_id", "variant"),
    [
        ("timm-vit", Variant("dynamo", "sdpa", 20, "dynamic")),
        ("timm-vit-reg4-gap", Variant("dynamo", "eager", 17, 4)),
        ("timm-siglip", Variant("torchscript", "eager", 17, "dynamic")),
        ("hf-clip-vision-projection", Variant("torchscript", "sdpa", 20, 4)),
        ("hf-dinov2-registers", Variant("torchscript", "sdpa", 17, "dynamic")),
        ("open-clip-tokens", Variant("dynamo", None, 18, 1)),
        ("torchvision-vit", Variant("torchscript", None, 17, "dynamic")),
    ],
    ids=str,
)
def test_file_is_what_was_asked_for(case_id: str, variant: Variant, tmp_path: Path) -> None:
    """Dims, opset and outputs, against PyTorch at a batch that the export never saw."""
    loaded = load_case(case_id)
    path = export_cached(BY_ID[case_id], variant, tmp_path)
    model = onnx.load(path)
    free = variant.batch == "dynamic"
    assert {i.domain: i.version for i in model.opset_import}[""] == variant.opset
    (value,) = model.graph.input
    batch, *image = value.type.tensor_type.shape.dim
    assert [d.dim_value for d in image] == [3, *loaded.preprocessing["size"]]
    assert (batch.dim_param or batch.dim_value) == ("batch" if free else variant.batch)
    assert tuple(o.name for o in model.graph.output) == loaded.output_names
    for output in model.graph.output:
        first, *others = output.type.tensor_type.shape.dim
        assert first.dim_param == "batch" if free else first.dim_value == variant.batch
        assert all(d.dim_value for d in others)

    count = 5 if free else int(variant.batch)
    images = np.random.default_rng(1).normal(size=(count, *[d.dim_value for d in image]))
    images = images.astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {value.name: images})
    with torch.no_grad():
        result = loaded.module(torch.from_numpy(images))
    expected = result if isinstance(result, tuple) else (result,)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5 * float(theirs.abs().max()))


def test_transformers_exporter(tmp_path: Path) -> None:
    case, path = BY_ID["hf-vit-classify"], tmp_path / "m.onnx"
    report = export(load_case(case.id), path, exporter="transformers", batch="dynamic")
    assert report.exporter == "transformers"
    assert report.inputs == {"pixel_values": ("batch", 3, 112, 112)}
    assert report.outputs == {"logits": ("batch", 10)}
    assert report.max_abs_error is not None
    assert report.max_abs_error < 1e-5


def test_attention_op_comes_from_sdpa_at_opset_23(tmp_path: Path) -> None:
    loaded = _tiny()
    found = {}
    for attention, opset in (("sdpa", 20), ("sdpa", 23), ("eager", 23)):
        path = tmp_path / f"{attention}{opset}.onnx"
        report = export(loaded, path, exporter="dynamo", attention=attention, opset=opset)
        assert (report.attention, report.opset) == (attention, opset)
        found[attention, opset] = _ops(path)["Attention"]
    assert found == {("sdpa", 20): 0, ("sdpa", 23): 1, ("eager", 23): 0}


def test_report_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    said: list[str] = []
    report = export(
        "timm:vit_tiny_patch16_224",
        path,
        random_weights=True,
        image_size=32,
        overrides=TINY,
        exporter="torchscript",
        progress=said.append,
    )
    assert report.files == (path,)
    assert (report.exporter, report.opset, report.attention) == ("torchscript", 17, "sdpa")
    assert (report.inputs, report.outputs) == ({"image": (1, 3, 32, 32)}, {"logits": (1, 5)})
    assert report.notes == ()
    assert json.loads(json.dumps(report.to_json()))["inputs"] == {"image": [1, 3, 32, 32]}
    assert said == ["loading timm:vit_tiny_patch16_224", "exporting with torchscript"]
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert properties[SOURCE_KEY] == "timm:vit_tiny_patch16_224"
    assert json.loads(properties[PREPROCESS_KEY])["size"] == [32, 32]
    assert list(tmp_path.iterdir()) == [path]


def test_own_module_with_a_dict_of_outputs(tmp_path: Path) -> None:
    report = export(f"{HERE}:two_outputs", tmp_path / "m.onnx", batch="dynamic")
    assert report.exporter == "dynamo"
    assert report.outputs == {"tokens": ("batch", 4, 8), "pooled": ("batch", 8)}


def test_model_without_a_choice_of_attention_says_so(tmp_path: Path) -> None:
    loaded = _tiny("torchvision:vit_b_16")
    report = export(loaded, tmp_path / "m.onnx", exporter="torchscript", attention="eager")
    assert report.attention is None
    assert "no choice of attention" in report.notes[0]


def test_stdout_stays_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Even when the exporters' C++ prints the whole graph."""
    for exporter in ("dynamo", "torchscript"):
        export(_tiny(), tmp_path / "m.onnx", exporter=exporter)
        with pytest.raises(ModelError):
            export(f"{HERE}:not_exportable", tmp_path / "n.onnx", exporter=exporter)
    assert capfd.readouterr().out == ""


# ---- cures ---------------------------------------------------------------------------------------


def test_position_table_is_a_constant_where_resize_cannot_be_written(tmp_path: Path) -> None:
    """transformers' DINOv2 with registers resizes with antialiasing under TorchScript."""
    loaded = load_case("hf-dinov2-registers")
    path = tmp_path / "m.onnx"
    report = export(loaded, path, exporter="torchscript")
    assert report.notes == ("the position table is taken as a constant at this image size",)
    assert _ops(path)["Resize"] == 0
    assert not any("interpolate_pos_encoding" in vars(m) for m in loaded.base.modules())


def test_trained_positions_at_another_size(tmp_path: Path) -> None:
    """A checkpoint at a new image size needs no Resize either, whatever the exporter."""
    small = load_source(
        "hf:vit", random_weights=True, image_size=32, overrides=TINY | {"patch_size": 8}
    )
    small.base.save_pretrained(tmp_path / "checkpoint")
    loaded = load_source(f"hf:{tmp_path / 'checkpoint'}", image_size=48)
    for exporter in ("dynamo", "torchscript", "transformers"):
        path = tmp_path / f"{exporter}.onnx"
        # transformers' exporter must be told of the flag that resizing adds to every call.
        batch: Any = "dynamic" if exporter == "transformers" else 1
        report = export(loaded, path, exporter=exporter, batch=batch)
        assert report.outputs["last_hidden_state"][1:] == (37, 32)
        assert _ops(path)["Resize"] == 0


def test_unfused_attention_where_the_fused_form_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is written out when nothing else works, unless the caller insists on its form."""
    from tcompile.models.attention import get_attention

    def only_eager(job: recipes.Job) -> onnx.ModelProto:
        if get_attention(job.loaded.base) == "sdpa":
            raise RuntimeError("only 4D query, key, and value are supported")
        return recipes.torchscript(job)

    monkeypatch.setitem(recipes.RECIPES, "dynamo", only_eager)
    loaded = _tiny()
    report = export(loaded, tmp_path / "m.onnx", exporter="dynamo")
    assert report.attention == "eager"
    assert "written out" in report.notes[0]
    assert get_attention(loaded.base) == "sdpa", "the model is given back as it was"
    with pytest.raises(ModelError, match="only 4D query"):
        export(loaded, tmp_path / "m.onnx", exporter="dynamo", attention="sdpa")


@pytest.mark.parametrize("failure", KNOWN, ids=lambda f: f"{f.example}-{f.exporter}")
def test_known_failures_still_fail(failure: KnownFailure, tmp_path: Path) -> None:
    """If this fails, the export works now: take the entry out of `tcompile.models.known`."""
    loaded = load_source(
        failure.example,
        random_weights=True,
        image_size=failure.image_size,
        overrides=failure.overrides,
    )
    with pytest.raises(ModelError, match=re.escape(failure.error)) as caught:
        export(loaded, tmp_path / "m.onnx", exporter=failure.exporter or "torchscript")
    assert f"known to fail: {failure.hint}" in str(caught.value)


def test_newer_opset_where_the_default_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript has Col2Im (timm's VOLO) from opset 18 on only."""
    asked: list[int] = []

    def recipe(job: recipes.Job) -> onnx.ModelProto:
        asked.append(job.opset)
        if job.opset < 18:
            raise torch.onnx.errors.UnsupportedOperatorError("aten::col2im", job.opset, 18)
        return recipes.torchscript(job)

    monkeypatch.setitem(recipes.RECIPES, "torchscript", recipe)
    report = export(_tiny(), tmp_path / "m.onnx", exporter="torchscript")
    assert (report.opset, asked) == (18, [17, 18])
    with pytest.raises(ModelError, match="added in version 18"):
        export(_tiny(), tmp_path / "m.onnx", exporter="torchscript", opset=17)


# ---- what must not pass --------------------------------------------------------------------------


def _broken(change: Callable[[onnx.ModelProto], None]) -> Callable[[recipes.Job], onnx.ModelProto]:
    def recipe(job: recipes.Job) -> onnx.ModelProto:
        proto = recipes.torchscript(job)
        change(proto)
        return proto

    return recipe


def _scale_a_weight(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == "head.weight")
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _freeze_the_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _drop_the_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "other"


def _swap_in_an_unknown_op(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].op_type = "Gremlin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_scale_a_weight, "output 'logits' differs by"),
        (_freeze_the_batch, r"wrote input 'image' as \[2, 3, 32, 32\], not as \['batch', 3"),
        (_drop_the_input, r"has inputs \['other'\]"),
        (_swap_in_an_unknown_op, "wrote invalid ONNX"),
    ],
)
def test_wrong_files_are_caught(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "dynamo", _broken(change))
    with pytest.raises(ModelError, match=message):
        export(_tiny(), tmp_path / "m.onnx", exporter="dynamo", batch="dynamic")
    assert list(tmp_path.iterdir()) == []


def test_batch_frozen_inside_the_graph(tmp_path: Path) -> None:
    """TorchScript declares the batch free and bakes it in; the check at another batch finds it."""
    with pytest.raises(ModelError) as caught:
        export(f"{HERE}:batch_in_python", tmp_path / "m.onnx", batch="dynamic")
    assert "dynamo: " in str(caught.value)
    assert "torchscript: " in str(caught.value)
    fixed = export(f"{HERE}:batch_in_python", tmp_path / "m.onnx", batch=2)
    assert fixed.inputs == {"image": (2, 3, 16, 16)}


def test_failure_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("precious")
    with pytest.raises(ModelError) as caught:
        export(f"{HERE}:not_exportable", path)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("tcompile.models.check.check_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(_tiny(), tmp_path / "m.onnx", exporter="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_INLINE_LIMIT", 10_000)
    path = tmp_path / "m.onnx"
    report = export(_tiny(), path, exporter="torchscript")
    assert report.files == (path, tmp_path / "m.onnx.data")
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    assert len({file.stat().st_mode for file in report.files}) == 1
    assert path.stat().st_size < 100_000 < report.files[1].stat().st_size
    moved = onnx.load(path, load_external_data=False)
    assert {
        e.value for t in moved.graph.initializer for e in t.external_data if e.key == "location"
    } == {"m.onnx.data"}


def test_weights_that_cannot_go_beside_the_file_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_INLINE_LIMIT", -1)
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))

    def write() -> None:
        with files.staged(proto, path) as (written, _):
            (written.parent / data.name).write_text("new")

    def save(proto: onnx.ModelProto, written: Path, **_: Any) -> None:
        written.write_text("new")
        (written.parent / data.name).write_text("new")

    monkeypatch.setattr(onnx, "save", save)
    path.write_text("old")
    data.mkdir()
    with pytest.raises(UsageError, match=r"m\.onnx\.data: is a directory"):
        write()
    assert path.read_text() == "old"
    data.rmdir()
    replace, failing = Path.replace, [0]

    def fails(self: Path, target: Path) -> Path:
        failing[0] -= 1
        if failing[0] == 0:
            raise OSError(errno.EIO, "")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    for before in (False, True):
        if before:
            data.write_text("old")
        for failing[0] in (1, 2):
            with pytest.raises(UsageError, match="cannot be written"):
                write()
            assert path.read_text() == "old"
            assert data.exists() == before
            assert not before or data.read_text() == "old"
    write()
    assert [p.read_text() for p in sorted(tmp_path.iterdir())] == ["new", "new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "not a positive number"),
        ({"batch": "free"}, "neither a number nor 'dynamic'"),
        ({"exporter": "tf"}, "unknown exporter 'tf'"),
        ({"exporter": "transformers"}, "takes unchanged transformers models only"),
        ({"opset": 16}, r"outside 17\.\."),
        ({"opset": 99}, r"outside 17\.\."),
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"image_size": 64}, "need a SOURCE string"),
    ],
)
def test_arguments_out_of_range(arguments: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export(_tiny(), tmp_path / "m.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_where_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        export(_tiny(), tmp_path)
    with pytest.raises(UsageError, match="the folder does not exist"):
        export(_tiny(), tmp_path / "absent" / "m.onnx")


def test_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UsageError, match="the folder cannot be written to"):
            export(_tiny(), tmp_path / "m.onnx", progress=told.append)
    assert told == []

    def fails(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "new_draft", fails)
    with pytest.raises(UsageError, match=r"m\.onnx: cannot be written: Read-only file system"):
        export(_tiny(), tmp_path / "m.onnx", progress=told.append)
    assert len(told) == 1


@pytest.mark.parametrize("module", ["onnxruntime", "onnxscript"])
def test_missing_runtime(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _tiny()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=module):
        export(loaded, tmp_path / "m.onnx")


def test_opset_18_becomes_17() -> None:
    """Axes go back into attributes and an even Split loses its count; what changed is refused."""
    from tcompile.models.opset import lower_to_17, opset_of

    def model(*nodes: onnx.NodeProto, dim: int = 6) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, dim])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
        graph = helper.make_graph(nodes, "g", [x], [y], [axes])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    split = helper.make_node("Split", ["x"], ["a", "b"], axis=-1, num_outputs=2)
    mean = helper.make_node("ReduceMean", ["a", "axes"], ["m"], keepdims=0)
    proto = model(split, mean, helper.make_node("Neg", ["m"], ["y"]))
    expected = _run(proto)
    lower_to_17(proto)
    onnx.checker.check_model(proto)
    assert opset_of(proto) == 17
    assert not proto.graph.initializer
    np.testing.assert_array_equal(_run(proto), expected)
    with pytest.raises(ModelError, match="unequal parts"):
        lower_to_17(model(split, dim=7))
    with pytest.raises(ModelError, match="known only at run time"):
        lower_to_17(model(helper.make_node("ReduceMean", ["x", "x"], ["y"])))
    with pytest.raises(ModelError, match="Resize of opset 18"):
        lower_to_17(model(helper.make_node("Resize", ["x", "", "axes"], ["y"])))


def _run(proto: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": np.arange(12, dtype=np.float32).reshape(2, 6)})[0]
