"""`--min-batch`, `--opt-batch`, `--max-batch`: from the command line to what builds the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import tcompile
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import BatchEntry
from tcompile.artifact.page import render
from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.targets.backends import jetson, rtx, trt_common
from tcompile.targets.backends.base import Batch, first_dims
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=2)


def built(folder: Path, target: str, fixed: int | None = None, **options: Any) -> Path:
    """Signature of a model whose batch is free, or fixed."""
    model = save_tiny_vit(folder / "vit.onnx", SPEC, batch=fixed)
    return tcompile.build(
        model, target=target, method="topk", keep="0.5", output=folder / "out", **options
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 1, 8)),
        ({"batch": 4}, (1, 4, 8)),
        ({"batch": 16}, (1, 16, 16)),
        ({"max_batch": 32}, (1, 1, 32)),
        ({"min_batch": 2, "opt_batch": 4, "max_batch": 6, "batch": 3}, (2, 4, 6)),
        ({"min_batch": 12}, (12, 12, 12)),
        ({"opt_batch": 10}, (1, 10, 10)),
    ],
)
def test_a_jetson_bundle_has_the_sizes_everywhere(
    tmp_path: Path, options: dict[str, int], expected: tuple[int, int, int]
) -> None:
    folder = built(tmp_path, "jetson-orin-nano", **options)
    shapes = [
        f"--{kind}Shapes=image:{size}x3x32x32"
        for kind, size in zip(("min", "opt", "max"), expected, strict=True)
    ]
    commands = json.loads((folder / "trtexec.json").read_text())["commands"]
    texts = [(folder / "build_engine.sh").read_text(), *(c["command"] for c in commands)]
    assert len(texts) > 1
    for text in texts:
        assert " ".join(shapes) in text
    words = f"batches of {expected[0]} to {expected[2]}, and is tuned for {expected[1]}"
    readme = (folder / "README.txt").read_text()
    assert words in readme
    # trtexec takes 1 for a free dim, unless it is told.
    measuring = [line for line in readme.splitlines() if "--exportTimes" in line]
    assert len(measuring) == 2
    assert all(f" --shapes=image:{expected[1]}x3x32x32 " in line for line in measuring)
    manifest = load_artifact(folder).manifest
    assert manifest.batch_sizes == BatchEntry(*expected)
    assert manifest.batch_sizes.words in render(manifest)


def test_rtx_builds_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    seen: list[Batch] = []
    real = rtx.build

    def build(path: Path, capability: str, *, batch: Batch, **other: Any) -> memoryview:
        seen.append(batch)
        return real(path, capability, batch=batch, **other)

    monkeypatch.setattr(rtx, "build", build)
    folder = built(tmp_path, "rtx-4090", min_batch=2, opt_batch=3, max_batch=5)
    assert seen == [Batch(2, 3, 5)]
    assert load_artifact(folder).manifest.batch_sizes == BatchEntry(2, 3, 5)


class Recorder:
    """A TensorRT builder, network and optimisation profile that remembers the shapes."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.inputs, self.found = list(shapes.items()), dict[str, Any]()
        self.num_inputs = len(shapes)

    def create_optimization_profile(self) -> Recorder:
        return self

    def get_input(self, index: int) -> Any:
        name, shape = self.inputs[index]
        return type("Tensor", (), {"name": name, "shape": shape})

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.found[name] = shapes


INPUTS = (
    TensorInfo("image", "float32", ("images", 3, 8, 8)),
    TensorInfo("tiles", "float32", ("images*4", 3, 8, 8)),
    TensorInfo("ids", "int64", ("unk__7", 16)),
    TensorInfo("flag", "bool", ("?",)),
    TensorInfo("texts", "int64", (3, 16)),
    TensorInfo("scale", "float32", ()),
)
LARGEST = {"image": (6, 3, 8, 8), "tiles": (24, 3, 8, 8), "ids": (6, 16), "flag": (6,)}


def test_every_free_input_has_its_sizes_whatever_its_batch_is_called(tmp_path: Path) -> None:
    """Images and texts with batches of their own; a batch merged with tiles; fixed ones apart."""
    smallest, typical, largest = jetson.shape_flags(INPUTS, Batch(2, 3, 6))
    assert largest == "--maxShapes=image:6x3x8x8,tiles:24x3x8x8,ids:6x16,flag:6"
    assert smallest == "--minShapes=image:2x3x8x8,tiles:8x3x8x8,ids:2x16,flag:2"
    assert typical == "--optShapes=image:3x3x8x8,tiles:12x3x8x8,ids:3x16,flag:3"
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
    values = [
        helper.make_tensor_value_info(
            i.name, kinds[i.dtype], [None if d == "?" else d for d in i.shape]
        )
        for i in INPUTS
    ]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", values, [])), str(path))
    fake = Recorder(
        {i.name: tuple(-1 if isinstance(d, str) else d for d in i.shape) for i in INPUTS}
    )
    assert trt_common._profile(fake, fake, Batch(2, 3, 6), path) is fake
    assert {name: shapes[2] for name, shapes in fake.found.items()} == LARGEST
    assert [shapes[0][0] for shapes in fake.found.values()] == [2, 8, 2, 2]


def test_a_first_dim_at_three_sizes() -> None:
    sizes = Batch(1, 2, 8)
    assert first_dims("batch", sizes) == (1, 2, 8)
    assert first_dims("batch*3", sizes) == (3, 6, 24)
    assert first_dims("2*n*3", sizes) == (6, 12, 48)
    assert first_dims(5, sizes) == (5, 5, 5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_batch": 0}, "0, 1, 8 are not 1 <="),
        ({"min_batch": 4, "opt_batch": 2}, "4, 2, 8 are not"),
        ({"opt_batch": 4, "max_batch": 2}, "1, 4, 2 are not"),
        ({"min_batch": 9, "max_batch": 4}, "9, 9, 4 are not"),
        ({"batch": 16, "max_batch": 8}, "--batch: plans for 16 images in a run, .* --max-batch 8"),
    ],
)
def test_sizes_out_of_order_are_refused(tmp_path: Path, options: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        built(tmp_path, "jetson-orin-nano", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["jetson-orin-nano", "cpu"])
def test_a_fixed_batch_takes_no_others(tmp_path: Path, target: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"--max-batch 8 needs a model with a free batch; this one "
        r"runs 2 at a time, inputs 'image' \[2, 3, 32, 32\]",
    ):
        built(tmp_path, target, fixed=2, max_batch=8)
    assert not (tmp_path / "out").exists()


def test_a_fixed_batch_may_be_named(tmp_path: Path) -> None:
    folder = built(tmp_path, "jetson-orin-nano", fixed=2, min_batch=2, max_batch=2)
    assert load_artifact(folder).manifest.batch_sizes is None
    assert "Shapes" not in (folder / "build_engine.sh").read_text()


def test_on_a_cpu_they_bind_nothing_and_are_recorded(tmp_path: Path) -> None:
    manifest = load_artifact(built(tmp_path, "cpu", max_batch=4, force=True)).manifest
    assert manifest.batch_sizes == BatchEntry(1, 1, 4)
    (note,) = [n for n in manifest.notes if "--max-batch" in n]
    assert "runs any batch" in note
    plain = load_artifact(built(tmp_path, "cpu", force=True)).manifest
    assert plain.batch_sizes is None
    assert not any("batch sizes" in n for n in plain.notes)
