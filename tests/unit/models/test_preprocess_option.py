"""`--preprocess`: what it takes, held against the libraries that its presets are named after."""

from __future__ import annotations

import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import tcompile
from tcompile.api.run import run
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import UsageError
from tcompile.core.model_files import TensorInfo
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights
from tcompile.models.preprocess import PREPROCESS_KEY, load_image
from tcompile.models.preprocess_option import PRESETS, overrides, parse_preprocess, resolved
from tcompile.planning.losses.data import read_calibration
from tcompile.runtime.samples import samples_for
from tcompile.runtime.signature import signature

PLANES = [TensorInfo("image", "float32", ("batch", 3, 32, 48))]


def constants(library: str, file: str) -> dict[str, Any]:
    """Constants of a library that need not be imported for them."""
    found = find_spec(library)
    if found is None or found.origin is None:
        pytest.skip(f"{library} is not installed")
    return runpy.run_path(str(Path(found.origin).parent / file))


def test_presets_are_those_of_timm() -> None:
    timm = constants("timm", "data/constants.py")
    assert PRESETS["imagenet"]["mean"] == list(timm["IMAGENET_DEFAULT_MEAN"])
    assert PRESETS["imagenet"]["std"] == list(timm["IMAGENET_DEFAULT_STD"])
    assert PRESETS["imagenet"]["crop_pct"] == timm["DEFAULT_CROP_PCT"]
    assert PRESETS["inception"]["mean"] == list(timm["IMAGENET_INCEPTION_MEAN"])


def test_presets_are_those_of_open_clip() -> None:
    clip = constants("open_clip", "constants.py")
    assert PRESETS["clip"]["mean"] == list(clip["OPENAI_DATASET_MEAN"])
    assert PRESETS["clip"]["std"] == list(clip["OPENAI_DATASET_STD"])


def test_what_it_says_is_recorded_for_the_model() -> None:
    found = resolved("mean=0.1,0.2,0.3,std=0.5,resize=squash", PLANES, {"labels": ["a"]})
    assert found == {
        "input": "image",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "size": [32, 48],
        "resize": "squash",
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "labels": ["a"],
    }
    assert resolved("siglip,size=32,48", PLANES, {})["resize"] == "squash"
    assert resolved("clip,crop=0.9", PLANES, {})["crop_pct"] == 0.9
    last = resolved("unit", [TensorInfo("x", "float32", (1, 16, 24, 3))], {})
    assert (last["size"], last["channels"]) == ([16, 24], "last")


def test_which_input_and_axis_are_meant() -> None:
    free = TensorInfo("pixels", "float32", ("n", "channels", "h", "w"))
    image = TensorInfo("image", "float32", (1, 3, 16, 16))
    found = resolved("unit", [TensorInfo("mask", "float32", (1, 1, 9, 9)), image], {})
    assert (found["input"], found["size"]) == ("image", [16, 16])
    found = resolved("unit", [free], {"size": [12, 12]})
    assert (found["size"], "channels" in found) == ([12, 12], False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "there is no 'imagnet'"),
        ("mean=0.5", "std is missing"),
        ("mean=0.5,std=0", "std=0"),
        ("mean=nan,std=1", "mean=nan"),
        ("mean=1,2,std=1", "mean=1,2"),
        ("mean=123.675,116.28,103.53,std=58.395,57.12,57.375", "divide by 255"),
        ("clip,size=0", "size=0"),
        ("clip,size=-1,8", "size=-1,8"),
        ("clip,size=8,8,8", "size=8,8,8"),
        ("clip,size=1e9", "size=1e9"),
        ("clip,size=8.5", "size=8.5"),
        ("clip,crop=2", "crop=2"),
        ("clip,resize=fit", "resize=fit"),
        ("clip,layout=hwc", "layout=hwc"),
        ("clip,colour=bgr", "'colour=bgr'"),
        ("clip,mean", "'mean'"),
        ("", "''"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_model_is_read(text: str, words: str) -> None:
    with pytest.raises(UsageError, match="--preprocess") as error:
        parse_preprocess(text)
    assert words in str(error.value)
    with pytest.raises(UsageError, match="--preprocess"):
        tcompile.plan("absent.onnx", keep=0.5, preprocess=text)


@pytest.mark.parametrize(
    ("inputs", "text", "words"),
    [
        ([TensorInfo("ids", "int64", (1, 77))], "clip", "no input of images"),
        (PLANES, "clip,size=224", "size=224,224 is not that of input 'image', 32 × 48"),
        (PLANES, "clip,layout=nhwc", "three channels last"),
        ([TensorInfo("x", "float32", (1, 3, "h", "w"))], "clip", "the size of input 'x' is free"),
        ([TensorInfo("x", "float32", (1, 1, 8, 8))], "clip", "three channels"),
        ([TensorInfo("x", "uint8", (1, 8, 8, 3))], "clip", "pixels of 8 bits"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    inputs: list[TensorInfo], text: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        resolved(text, inputs, {})


def test_a_record_is_overridden_with_a_note() -> None:
    known = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 48]}
    assert overrides(resolved("clip", PLANES, known), known).startswith("images are prepared as")
    assert overrides(resolved("inception", PLANES, known), known) == ""
    assert overrides(resolved("clip", PLANES, {}), {}) == ""


def test_frames_are_prepared_as_the_model_takes_them(tmp_path: Path) -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "x.png")
    frame = TensorInfo("x", "uint8", (1, 4, 4, 3))
    image = load_image(tmp_path / "x.png", resolved("raw,layout=nhwc", [frame], {}))
    np.testing.assert_allclose(image[0], pixels, atol=1e-3)
    planes = TensorInfo("x", "float32", (1, 3, 4, 4))
    image = load_image(tmp_path / "x.png", resolved("unit", [planes], {}))
    np.testing.assert_allclose(image[0], pixels.transpose(2, 0, 1) / 255, atol=1e-6)


def test_bytes_are_exact(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [cast], "g", [value("x", 2, [1, 4, 4, 3])], [value("y", 1, [1, 4, 4, 3])]
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "f.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    taken = samples_for(signature(tmp_path / "f.onnx").prepared("raw"), tmp_path / "x.png")
    np.testing.assert_array_equal(taken.arrays["x"][0], pixels)


def test_an_artifact_knows_how_images_are_prepared(tmp_path: Path) -> None:
    """A foreign file, calibrated, built, and verified and run without saying it again."""
    spec = VitSpec(depth=2)
    source = tmp_path / "foreign.onnx"
    onnx.save(build_vit(spec, random_weights(spec)), source)
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    with pytest.raises(UsageError, match="say --preprocess"):
        read_calibration(source, folder)
    taken = read_calibration(source, folder, "clip").samples.arrays["image"]
    want = [
        load_image(p, resolved("clip", [PLANES[0]], {}) | {"size": [32, 32]})
        for p in sorted(folder.iterdir())
    ]
    np.testing.assert_array_equal(taken, np.concatenate(want))
    built = tcompile.build(source, target="jetson-orin", keep=0.5, method="topk", preprocess="clip")
    manifest = load_artifact(built).manifest
    assert manifest.preprocess is not None
    assert manifest.preprocess["mean"] == PRESETS["clip"]["mean"]
    assert verify(built, data=folder).passed
    assert run(built, folder / "0.png").notes == ()
    (note,) = run(built, folder / "0.png", preprocess="siglip").notes
    assert "the model records mean" in note
    model = onnx.load(built / "model.onnx")
    recorded = {p.key: p.value for p in model.metadata_props}[PREPROCESS_KEY]
    assert json.loads(recorded)["size"] == [32, 32]
