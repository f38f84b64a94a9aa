"""What servers read: parsed by their formats, and held against the manifest."""

from __future__ import annotations

import configparser
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import tcompile
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import BatchEntry, Manifest, TargetEntry
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.deploy.serving import deepstream_config, triton_config
from tcompile.passes.lower.token_ops import TokenOpsChoice
from tcompile.targets.compatibility import Compatibility
from tests.support.artifacts import make_artifact
from tests.support.command import Command
from tests.support.tiny_vit import VitSpec, save_tiny_vit

#: Of protobuf/model_config.proto of triton-inference-server/common, package `inference`, as in
#: tritonclient 2.x: the messages and fields that are written here, with their numbers. A type in
#: capitals is a message or an enum; `*` repeats.
MESSAGES = {
    "ModelTensorReshape": "shape:1:int64*",
    "ModelInput": "name:1:string data_type:2:DataType dims:4:int64* reshape:5:ModelTensorReshape",
    "ModelOutput": "name:1:string data_type:2:DataType dims:3:int64* label_filename:4:string "
    "reshape:5:ModelTensorReshape",
    "ModelInstanceGroup": "count:2:int32 kind:4:Kind",
    "ModelDynamicBatching": "preferred_batch_size:1:int32*",
    "ModelConfig": "name:1:string max_batch_size:4:int32 input:5:ModelInput* "
    "output:6:ModelOutput* instance_group:7:ModelInstanceGroup* default_model_filename:8:string "
    "dynamic_batching:11:ModelDynamicBatching backend:17:string",
}
TYPES = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"
ENUMS = {
    "DataType": [f"TYPE_{name}" for name in TYPES.split()],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}
RECORD = {"input": "image", "size": [32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.25] * 3}


def model_config(text: str) -> Any:
    """A config.pbtxt, parsed; raises at whatever is no field of it."""
    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    scalar = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            known, number, kind = field.split(":")
            added = message.field.add(name=known, number=int(number), label=scalar.LABEL_OPTIONAL)
            if kind.endswith("*"):
                added.label, kind = scalar.LABEL_REPEATED, kind[:-1]
            if kind[0].isupper():
                added.type_name = f".inference.{kind}"
                added.type = scalar.TYPE_ENUM if kind in ENUMS else scalar.TYPE_MESSAGE
            else:
                added.type = scalar.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, made())


@pytest.fixture
def built(tmp_path: Path) -> Path:
    save_tiny_vit(tmp_path / "m.onnx", VitSpec(depth=1))
    labels = tuple(f"kind {i}" for i in range(10))
    return make_artifact(
        tmp_path / "my model", tmp_path / "m.onnx", preprocess=RECORD, labels=labels
    )


def manifest_of(built: Path, runtime: str = "onnxruntime", **changes: Any) -> Manifest:
    manifest = load_artifact(built).manifest
    return replace(manifest, target=TargetEntry("a device", runtime), **changes)


@pytest.mark.parametrize(
    ("runtime", "backend", "kind"),
    [
        ("onnxruntime", "onnxruntime", 2),
        ("openvino", "openvino", 2),
        ("tensorrt-rtx", "onnxruntime", 1),
        ("jetson", "tensorrt", 1),
    ],
)
def test_a_fixed_batch_is_the_shape_of_the_tensors(
    built: Path, runtime: str, backend: str, kind: int
) -> None:
    manifest = manifest_of(built, runtime)
    found = model_config(triton_config(manifest, "m"))
    assert (found.name, found.backend, found.max_batch_size) == ("m", backend, 0)
    assert [g.kind for g in found.instance_group] == [kind]
    assert (found.default_model_filename == "model.onnx") == (runtime != "jetson")
    (image,), (logits,) = found.input, found.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", 11, [1, 3, 32, 32])
    assert (logits.name, list(logits.dims), logits.label_filename) == (
        "logits",
        [1, 10],
        "labels.txt",
    )
    assert not found.HasField("dynamic_batching")


def test_a_free_batch_is_the_servers(built: Path) -> None:
    manifest = manifest_of(
        built,
        inputs=(TensorInfo("image", "float16", ("n", 3, 32, 32)),),
        outputs=(
            TensorInfo('a "name"', "float32", ("n", 9, 16)),
            TensorInfo("token_index", "int64", ("n", 9)),
            TensorInfo("score", "float32", ("n",)),
        ),
        labels=(),
        batch_sizes=BatchEntry(1, 2, 6),
    )
    found = model_config(triton_config(manifest, "m"))
    assert found.max_batch_size == 6
    assert list(found.dynamic_batching.preferred_batch_size) == [6]
    assert [(t.data_type, list(t.dims)) for t in found.input] == [(10, [3, 32, 32])]
    assert [(t.name, t.data_type, list(t.dims)) for t in found.output] == [
        ('a "name"', 11, [9, 16]),
        ("token_index", 9, [9]),
        ("score", 11, [1]),
    ]
    assert [t.HasField("reshape") for t in found.output] == [False, False, True]
    merged = replace(manifest, outputs=(TensorInfo("rows", "float32", ("m", "k")),))
    found = model_config(triton_config(merged, "m"))
    assert found.max_batch_size == 0
    assert [list(t.dims) for t in (*found.input, *found.output)] == [[-1, 3, 32, 32], [-1, -1]]


def test_a_repository_holds_what_the_server_loads(built: Path, tmp_path: Path) -> None:
    app = tcompile.init_app(built, tmp_path / "served", "triton")
    home = tmp_path / "served" / "models" / "my_model"
    assert sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
    ]
    assert (home / "1" / "model.onnx").read_bytes() == (built / "model.onnx").read_bytes()
    assert (home / "labels.txt").read_text().splitlines()[3] == "kind 3"
    assert model_config((home / "config.pbtxt").read_text()).name == home.name
    page = (tmp_path / "served" / "README.md").read_text()
    assert app.commands == ("tritonserver --model-repository=models",)
    assert app.commands[0] in page


def test_an_engine_is_put_where_the_server_looks(built: Path, tmp_path: Path) -> None:
    def engine(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "model.trt10.3.engine").write_bytes(b"an engine")

    jetson = TargetEntry("jetson-orin", "jetson", "8.7")
    without = make_artifact(tmp_path / "bundle", tmp_path / "m.onnx", target=jetson)
    app = tcompile.init_app(without, tmp_path / "a", "triton")
    assert app.commands == (
        "engine=$(sh artifact/build_engine.sh | tail -n 1)",
        'cp "artifact/$engine" models/bundle/1/model.plan',
        "tritonserver --model-repository=models",
    )
    assert (tmp_path / "a" / "artifact" / "model.onnx").is_file()
    for made in (Compatibility(version=True), Compatibility(version=True, lean_runtime=True)):
        kind = make_artifact(
            tmp_path / f"vc{made.lean_runtime}",
            tmp_path / "m.onnx",
            target=jetson,
            compatibility=made,
            preprocess=RECORD,
        )
        app = tcompile.init_app(kind, tmp_path / f"t{made.lean_runtime}", "triton")
        allowed = "--backend-config=tensorrt,version-compatible=true" in app.commands[-1]
        assert allowed == made.lean_runtime
        told = (tmp_path / f"t{made.lean_runtime}" / "README.md").read_text()
        assert ("let it serve none that you do\nnot trust" in told) == allowed
    with pytest.raises(UsageError, match="nvinfer does not let run"):
        tcompile.init_app(kind, tmp_path / "d", "deepstream")
    (kind / "engine").mkdir()
    (kind / "engine" / "model.trt10.3.engine").write_bytes(b"an engine")
    with pytest.raises(ModelError, match="and there is no sha256 of it"):
        tcompile.init_app(kind, tmp_path / "d", "triton")
    assert not (tmp_path / "d").exists()
    there = make_artifact(tmp_path / "there", tmp_path / "m.onnx", engine=engine, target=jetson)
    tcompile.init_app(there, tmp_path / "b", "triton")
    plan = tmp_path / "b" / "models" / "there" / "1" / "model.plan"
    assert plan.read_bytes() == b"an engine"


def keys(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return dict(parser["property"])


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_one_scale_for_all_channels_is_what_nvinfer_computes(built: Path, resize: str) -> None:
    manifest = manifest_of(built, "jetson", preprocess={**RECORD, "resize": resize})
    text, notes = deepstream_config(manifest, "")
    found = keys(text)
    pixels = np.random.default_rng(0).integers(256, size=(3, 4, 4))
    offsets = np.array([float(v) for v in found["offsets"].split(";")])
    computed = float(found["net-scale-factor"]) * (pixels - offsets[:, None, None])
    mean, std = (np.reshape(RECORD[k], (3, 1, 1)) for k in ("mean", "std"))
    np.testing.assert_allclose(computed, (pixels / 255 - mean) / std, atol=1e-5)
    assert found["infer-dims"] == "3;32;32"
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")
    assert found["maintain-aspect-ratio"] == found["symmetric-padding"] == str(int(resize == "pad"))
    assert ("src-crop" in notes) == (resize == "crop")
    assert found["scaling-filter"] == "1"


def test_an_engine_of_several_images_is_not_for_nvinfer(built: Path) -> None:
    manifest = manifest_of(built, "jetson", preprocess=RECORD)
    free = tuple(replace(t, shape=("batch", *t.shape[1:])) for t in manifest.inputs)
    ranged = replace(manifest, inputs=free, batch_sizes=BatchEntry(4, 8, 16))
    with pytest.raises(UsageError, match="takes 4 images at least"):
        deepstream_config(ranged, "")
    text, _ = deepstream_config(replace(ranged, batch_sizes=BatchEntry(1, 8, 16)), "")
    assert keys(text)["batch-size"] == "16"


def test_a_scale_for_each_channel_is_not_made_up(built: Path) -> None:
    std = [0.229, 0.224, 0.225]
    manifest = manifest_of(built, "jetson", preprocess={**RECORD, "std": std})
    text, notes = deepstream_config(manifest, "")
    found = keys(text)
    assert "net-scale-factor" not in found
    assert "offsets" not in found
    assert found["input-tensor-from-meta"] == "1"
    assert str(std) in notes
    assert "CustomTensorPreparation" in notes


def test_what_a_server_cannot_run_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(capsys)
    said = command("init-app", built, "--deepstream", "-o", tmp_path / "new")
    assert said.code == 2
    assert "is for onnxruntime; DeepStream's nvinfer runs engines of TensorRT" in said.err
    plugins = make_artifact(
        tmp_path / "plugins",
        tmp_path / "m.onnx",
        target=TargetEntry("jetson-orin", "jetson", "8.7"),
        token_ops=TokenOpsChoice("plugin", "asked for"),
        preprocess=RECORD,
    )
    for server in ("--triton", "--deepstream"):
        said = command("init-app", plugins, server, "-o", tmp_path / "new")
        assert said.code == 2
        assert "its token ops are plugins" in said.err
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="does not say by which mean and std"):
        deepstream_config(manifest_of(built, "jetson", preprocess={"input": "image"}), "")
    with pytest.raises(UsageError, match="nvinfer fills one input"):
        deepstream_config(
            manifest_of(built, "jetson", inputs=(TensorInfo("x", "float32", (64, 96)),)), ""
        )


def test_a_jetsons_artifact_is_configured(built: Path, tmp_path: Path) -> None:
    bundle = make_artifact(
        tmp_path / "bundle",
        tmp_path / "m.onnx",
        target=TargetEntry("jetson-orin", "jetson", "8.7"),
        preprocess=RECORD,
    )
    app = tcompile.init_app(bundle, tmp_path / "ds", "deepstream")
    found = keys((tmp_path / "ds" / "config_infer.txt").read_text())
    assert app.commands[1] == f'ln -sf "artifact/$engine" {found["model-engine-file"]}'
    assert "config-file-path=config_infer.txt" in app.commands[2]
    assert (tmp_path / "ds" / "artifact" / "manifest.json").is_file()
    other = make_artifact(
        tmp_path / "other",
        tmp_path / "m.onnx",
        target=TargetEntry("jetson-orin", "jetson", "8.7"),
        preprocess={**RECORD, "std": [0.229, 0.224, 0.225]},
    )
    assert len(tcompile.init_app(other, tmp_path / "by-channel", "deepstream").commands) == 2


def test_the_lines_of_the_page_put_the_division_into_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"(?s)```python\n(# vit.onnx, which.*?)```", page)
    record = {**RECORD, "std": [0.229, 0.224, 0.225]}
    save_tiny_vit(Path("vit.onnx"), VitSpec(depth=1))
    model = onnx.load("vit.onnx")
    entry = model.metadata_props.add()
    entry.key, entry.value = "tcompile.preprocess", json.dumps(record)
    onnx.save(model, "vit.onnx")
    exec(compile(code, "deploy.md", "exec"), {})
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    with tcompile.load("vit.onnx") as before, tcompile.load("vit-pixels.onnx") as after:
        want, have = (model(pixels)["logits"] for model in (before, after))
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
        manifest = manifest_of(
            make_artifact(tmp_path / "b", tmp_path / "vit-pixels.onnx"),
            "jetson",
            preprocess=dict(after.preprocessing),
        )
    found = keys(deepstream_config(manifest, "")[0])
    assert float(found["net-scale-factor"]) == pytest.approx(1)
    assert found["offsets"] == "0;0;0"
    tcompile.inspect("vit-pixels.onnx")
