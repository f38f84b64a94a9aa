"""Procedural scenes have the statistics of photographs, and fit what a model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.model_files import TensorInfo
from tcompile.models.preprocess import pack_patches
from tcompile.runtime.dead_leaves import draw
from tcompile.runtime.samples import samples_for
from tcompile.runtime.scenes import evidence_count, scenes_and_noise, scenes_for
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
    slopes = [slope(draw(rng, 128, 128)[0].mean(axis=0)) for _ in range(8)]
    assert -3 < np.mean(slopes) < -1.5, slopes
    assert abs(slope(rng.standard_normal((128, 128)))) < 0.3


def test_patches_differ_in_colour_and_in_texture() -> None:
    """What a score tells tokens apart by, and white noise does not have."""
    rng = np.random.default_rng(1)

    def patches(image: np.ndarray) -> np.ndarray:
        return image.reshape(3, 8, 16, 8, 16).transpose(1, 3, 0, 2, 4).reshape(64, -1)

    scenes = [patches(draw(rng, 128, 128)[0]) for _ in range(8)]
    noise = patches(rng.random((3, 128, 128)))
    assert np.mean([s.mean(axis=1).std() for s in scenes]) > 5 * noise.mean(axis=1).std()
    assert np.mean([s.std(axis=1).max() / np.median(s.std(axis=1)) for s in scenes]) > 2


def test_a_seed_gives_the_same_again() -> None:
    model = takes("float32", "batch", 3, 32, 48)
    few, many, other = (
        scenes_for(model, count=n, seed=seed).arrays["x"] for n, seed in ((2, 7), (4, 7), (4, 8))
    )
    np.testing.assert_array_equal(few, many[:2])
    assert (many != other).any(axis=(1, 2, 3)).all()


def test_scenes_say_what_they_are() -> None:
    x = scenes_for(takes("float32", "batch", 3, 32, 32, mean=[0.5], std=[0.5]), count=5, seed=2)
    assert (len(x), x.real, x.scenes) == (5, False, True)
    assert x.source == "5 procedural scenes (seed 2)"
    text = scenes_for(takes("int64", 1, 77), count=2)
    assert (text.real, text.scenes) == (False, False)
    both = scenes_and_noise(takes("uint8", 1, 32, 32, 3))
    assert (both.source, both.scenes) == (
        "3 procedural scenes and 1 of white noise (seed 0)",
        False,
    )


def test_what_is_assumed_is_said() -> None:
    x = scenes_for(takes("float32", "batch", 3, 32, 32), count=1)
    said = "normalised as for ImageNet: the model does not say how, --preprocess does"
    assert x.source == f"1 procedural scene (seed 0; {said})"
    pixels = x.arrays["x"] * np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    pixels += np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


def test_one_colour_is_grey_and_a_fourth_is_another() -> None:
    one, three, four = (
        scenes_for(takes("float32", 1, n, 32, 32, mean=0, std=1), count=1).arrays["x"][0]
        for n in (1, 3, 4)
    )
    grey = np.tensordot([0.299, 0.587, 0.114], three, 1)
    np.testing.assert_allclose(one[0], grey, atol=1e-6)
    np.testing.assert_array_equal(four[:3], three)
    np.testing.assert_allclose(four[3], grey, atol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 32, 48),
        (1, 32, 48, 3),
        (1, 1, 32, 48),
        (1, 4, 32, 48),
        (1, 3, 4, 32, 32),
        (1, 4, 3, 32, 32),
        (1, 4, 32, 32, 3),
    ],
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
    if len(shape) == 5:  # things move, and most of the image stays as it was
        frames = np.moveaxis(x[0], shape.index(4) - 1, 0)
        assert 0.01 < abs(np.diff(frames, axis=0)).mean() < 0.5 * frames.std()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (7, 300), (31, 17)])
def test_any_size(height: int, width: int) -> None:
    image = draw(np.random.default_rng(0), height, width, frames=2)
    assert image.shape == (2, 3, height, width)
    assert np.isfinite(image).all()


def test_scenes_differ_in_how_much_there_is() -> None:
    """Some have little more than a background, others are full of edges."""
    rng = np.random.default_rng(0)
    empty, full = (
        np.mean([abs(np.diff(draw(rng, 64, 64, 1, share).mean(axis=1))) > 0.15 for _ in range(8)])
        for share in (0, 1)
    )
    assert full > 2 * empty


def test_as_the_file_says_images_are_prepared() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]
    x = scenes_and_noise(takes("float32", 1, 3, 32, 32, mean=mean, std=std)).arrays["x"][:3]
    pixels = x * np.array(std).reshape(1, 3, 1, 1) + np.array(mean).reshape(1, 3, 1, 1)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


def test_where_images_are_padded_some_scenes_are() -> None:
    form = {"mean": 0, "std": 1, "resize": "pad"}
    x = scenes_for(takes("float32", 1, 3, 64, 64, **form), count=12).arrays["x"]
    bars = [not image[:, [0, -1]].any() or not image[..., [0, -1]].any() for image in x]
    assert 2 < sum(bars) < 10


@pytest.mark.parametrize(("mean", "std"), [("red", 1), (0, 0), (0, float("nan")), ([0, 0], [1, 1])])
def test_numbers_that_no_image_is_prepared_with(mean: object, std: object) -> None:
    x = scenes_for(takes("float32", 1, 3, 16, 16, mean=mean, std=std), count=1)
    assert np.isfinite(x.arrays["x"]).all()
    assert "normalised as for ImageNet" in x.source


def test_fewer_scenes_of_a_large_model() -> None:
    assert [evidence_count(int(flops)) for flops in (0, 1e9, 1e11, 5e11, 1e14)] == [8, 8, 8, 4, 2]


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
    # As an image prepared for the same model is packed.
    image = scenes_for(takes("float32", 1, 3, 32, 32, mean=[0.5], std=[0.5]), count=1)
    np.testing.assert_allclose(x[0], pack_patches(image.arrays["x"][0], form), atol=1e-6)


def test_packed_video() -> None:
    form = {"size": [16, 32], "patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    model = takes("float32", 2 * 8, 3 * 2 * 64, frames=4, mean=[0.5], std=[0.5], **form)
    x = scenes_for(model, count=1).arrays["x"][0].reshape(2, 8, 3, 2, 64)
    assert (x[:, :, :, 0] != x[:, :, :, 1]).any()
    assert (x[0] != x[1]).any()
    first = pack_patches(
        draw(np.random.default_rng((0, 0)), 16, 32, 4, 0.5)[0] * 2 - 1, {**form, "frames": 2}
    )
    np.testing.assert_allclose(x[0, :, :, 0], first.reshape(8, 3, 2, 64)[:, :, 0], atol=1e-6)


def test_packed_as_nobody_says() -> None:
    """Patches of squares are taken for those of Qwen's processors; other rows are no image."""
    x = scenes_for(takes("float32", 24, 3 * 2 * 14**2), count=2)
    assert x.scenes
    assert "packed as for Qwen: the model does not say" in x.source
    alike = scenes_for(takes("float32", 1, 3, 2 * 28, 3 * 28), count=2)
    np.testing.assert_allclose(x.arrays["x"].mean(), alike.arrays["x"].mean(), atol=1e-5)
    features = scenes_for(takes("float32", 16, 100), count=2)
    assert (features.scenes, features.source) == (False, "2 random inputs (seed 0)")
