"""Procedural scenes have the statistics of photographs, and fit what a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.model_files import TensorInfo
from tcompile.runtime.samples import samples_for
from tcompile.runtime.scenes import scene, scenes_and_noise, scenes_for
from tcompile.runtime.signature import Signature, signature
from tests.unit.passes.lower.blocks import parse


def takes(dtype: str, *shape: int | str, **preprocessing: object) -> Signature:
    return Signature(Path("m.onnx"), (TensorInfo("x", dtype, shape),), (), preprocessing)


def slope(image: np.ndarray) -> float:
    """The exponent of power against spatial frequency, of a grey square image."""
    power = abs(np.fft.fft2(image - image.mean())) ** 2
    f = np.fft.fftfreq(len(image)) * len(image)
    radius = np.hypot(*np.meshgrid(f, f))
    bands = 2.0 ** np.arange(1, np.log2(len(image)) - 1)
    means = [power[(radius >= b) & (radius < 2 * b)].mean() for b in bands]
    return float(np.polyfit(np.log(bands), np.log(means), 1)[0])


def test_power_falls_with_frequency_as_in_photographs() -> None:
    rng = np.random.default_rng(0)
    slopes = [slope(scene(rng, 128, 128).mean(axis=0)) for _ in range(8)]
    assert -3 < np.mean(slopes) < -1.5, slopes
    assert abs(slope(rng.standard_normal((128, 128)))) < 0.3


def test_patches_differ_in_colour_and_in_texture() -> None:
    """What a score tells tokens apart by, and white noise does not have."""
    rng = np.random.default_rng(1)
    blocks = scene(rng, 128, 128).reshape(3, 8, 16, 8, 16).transpose(1, 3, 0, 2, 4).reshape(64, -1)
    noise = rng.random((64, 768))
    assert blocks.mean(axis=1).std() > 5 * noise.mean(axis=1).std()
    assert blocks.std(axis=1).max() > 2 * np.median(blocks.std(axis=1))
    assert blocks.min() >= 0
    assert blocks.max() <= 1


def test_a_seed_gives_the_same_again() -> None:
    one, two = (scenes_and_noise(takes("float32", "batch", 3, 32, 48)) for _ in range(2))
    np.testing.assert_array_equal(one.arrays["x"], two.arrays["x"])
    other = scenes_and_noise(takes("float32", "batch", 3, 32, 48), seed=1)
    assert (other.arrays["x"] != one.arrays["x"]).any()
    assert "3 procedural scenes and 1 of white noise" in one.source


def test_scenes_alone_say_what_they_are() -> None:
    x = scenes_for(takes("float32", "batch", 3, 32, 32), count=5, seed=2)
    assert (len(x), x.real, x.scenes) == (5, False, True)
    assert x.source == "5 procedural scenes (seed 2)"
    text = scenes_for(takes("int64", 1, 77), count=2)
    assert (text.real, text.scenes) == (False, False)


@pytest.mark.parametrize(
    "shape", [(1, 3, 32, 48), (1, 32, 48, 3), (1, 1, 32, 48), (1, 3, 4, 32, 32), (1, 4, 3, 32, 32)]
)
def test_layouts(shape: tuple[int, ...]) -> None:
    x = scenes_and_noise(takes("float32", *shape)).arrays["x"]
    assert x.shape == (4, *shape[1:])
    assert x.dtype == np.float32
    # Neighbours are alike in a scene, and not in noise, along both sides of the image.
    last = shape[-1] == 3
    for axis in (-2, -3) if last else (-1, -2):
        steps = abs(np.diff(x, axis=axis)).reshape(4, -1).mean(axis=1)
        assert steps[:3].max() < 0.6 * steps[3]
    assert abs(x[0].mean()) < 1e-3
    assert x[0].std() == pytest.approx(1, abs=1e-3)


def test_as_the_file_says_images_are_prepared() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]
    x = scenes_and_noise(takes("float32", 1, 3, 32, 32, mean=mean, std=std)).arrays["x"][:3]
    pixels = x * np.array(std).reshape(1, 3, 1, 1) + np.array(mean).reshape(1, 3, 1, 1)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


def test_pixels_are_whole_and_other_inputs_as_ever() -> None:
    x = scenes_and_noise(takes("uint8", 1, 32, 32, 3)).arrays["x"]
    assert x.dtype == np.uint8
    assert x[0].max() > 128
    assert x[3].std() > 60  # white noise
    assert (scenes_and_noise(takes("int64", 1, 77)).arrays["x"] == 1).all()
    assert (scenes_and_noise(takes("bool", 1, 16)).arrays["x"] == 1).all()


FRONTS = {
    "minus 127.5": ("y = Sub(x, c)", 127.5, True),
    "over 255": ("t = Transpose<perm=[0,3,1,2]>(x) y = Div(t, c)", 255, True),
    "times 1/255": ("y = Mul(c, x)", 1 / 255, True),
    "plus -124": ("y = Add(x, c)", -124, True),
    "ImageNet's mean": ("y = Sub(x, c)", 0.485, False),
    "ImageNet's deviation": ("y = Div(x, c)", 0.229, False),
    "what divides": ("y = Div(c, x)", 255, False),
    "after a norm": ("s = Softmax(x) y = Mul(s, c)", 0.01, False),
}


@pytest.mark.parametrize("front", FRONTS)
def test_a_model_that_scales_pixels_itself_gets_pixels(front: str, tmp_path: Path) -> None:
    text, number, pixels = FRONTS[front]
    model = parse(f"""<ir_version: 10, opset_import: ["":20]>
        g (float[1,16,16,3] x) => (float[a,b,c,d] y) <float c = {{{number}}}> {{ {text} }}""")
    onnx.save(model, str(tmp_path / "m.onnx"))
    found = signature(tmp_path / "m.onnx")
    assert found.pixels == ({"x"} if pixels else set())
    x = scenes_and_noise(found).arrays["x"]
    assert (x.min() >= 0 and 128 < x.max() <= 255) == pixels
    noise = samples_for(found).arrays["x"]
    assert (noise.min() >= 0 and 128 < noise.max() <= 255) == pixels


def test_a_mask_is_no_image() -> None:
    model = Signature(
        Path("m"),
        (TensorInfo("x", "float32", (1, 3, 32, 32)), TensorInfo("m", "float32", (1, 1, 16, 16))),
        (),
        {},
    )
    drawn = samples_for(model, count=4).arrays["m"]
    np.testing.assert_array_equal(scenes_and_noise(model).arrays["m"], drawn)


def test_packed_patches() -> None:
    form = {
        "size": [32, 32],
        "patch_size": 8,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "mean": [0.5],
        "std": [0.5],
        "layout": "patches",
    }
    x = scenes_and_noise(takes("float32", 16, 3 * 2 * 64, **form)).arrays["x"]
    assert x.shape == (4, 16, 384)
    # The two frames of a patch are one image.
    frames = x[0].reshape(16, 3, 2, 64)
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
    unknown = scenes_and_noise(takes("float32", 16, 384)).arrays["x"]
    assert unknown[0].std(axis=1).min() < 0.5 < unknown[3].std(axis=1).min()
