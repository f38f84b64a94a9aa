"""Images are prepared as the libraries prepare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import ModelError, UsageError
from tcompile.models.images import ImageError
from tcompile.models.preprocess import PREPROCESS_KEY, load_image, read_preprocessing

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).resize((250, 183)).save(path)
    return path


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 0.875), (224, 0.9), (96, 1.0)])
def test_crop_is_torchvisions(
    picture: Path, size: int, crop_pct: float, interpolation: str
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    expected = transforms.Compose(
        [
            transforms.Resize(int(size / crop_pct), transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET),
        ]
    )(Image.open(picture))
    got = load_image(
        picture,
        {**IMAGENET, "size": [size, size], "crop_pct": crop_pct, "interpolation": interpolation},
    )
    assert got.shape == (1, 3, size, size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], expected.numpy(), atol=1e-5)


def test_portrait_squash_and_pad(tmp_path: Path) -> None:
    """A tall image keeps its middle when cut, and all of itself when squashed or padded."""
    tall = np.zeros((90, 30, 3), dtype=np.uint8)
    tall[:30], tall[30:60], tall[60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = tmp_path / "tall.png"
    Image.fromarray(tall).save(path)
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1], "size": [30, 30], "interpolation": "nearest"}
    cut = load_image(path, plain)
    assert cut[0, 1].min() == 1.0
    squashed = load_image(path, {**plain, "resize": "squash"})
    assert squashed[0, :, 0, 0].tolist() == [1, 0, 0]
    assert squashed[0, :, 29, 0].tolist() == [0, 0, 1]
    padded = load_image(path, {**plain, "resize": "pad"})
    assert padded.shape == (1, 3, 30, 30)
    assert padded[0, :, 0, 15].tolist() == [1, 0, 0]
    assert padded[0, :, 29, 15].tolist() == [0, 0, 1]
    assert not padded[..., :10].any()
    assert not padded[..., 20:].any()


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (20, 20)).save(path)
        assert load_image(path, {**IMAGENET, "size": [16, 16]}).shape == (1, 3, 16, 16)


def test_what_cannot_be_read(tmp_path: Path, picture: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(UsageError, match="not an image"):
        load_image(text, {**IMAGENET, "size": [16, 16]})
    with pytest.raises(UsageError, match="no such file"):
        load_image(tmp_path / "absent.png", {**IMAGENET, "size": [16, 16]})
    with pytest.raises(UsageError, match="does not say how images are prepared"):
        load_image(picture, {"size": [16, 16]})


def test_read_preprocessing() -> None:
    assert read_preprocessing({}) is None
    assert read_preprocessing({PREPROCESS_KEY: '{"size": [8, 8]}'}) == {"size": [8, 8]}
    for text in ("nonsense", "[" * 99_999, '{"size": [8, NaN]}', "9" * 10_000, "[1]"):
        with pytest.raises(ModelError, match="not a JSON object"):
            read_preprocessing({PREPROCESS_KEY: text})
    for labels in ("5", '"cat"', "[1, 2]"):
        with pytest.raises(ModelError, match="labels that are not names"):
            read_preprocessing({PREPROCESS_KEY: f'{{"labels": {labels}}}'})


@pytest.mark.parametrize(
    "settings",
    [
        {"size": [0, 16]},
        {"size": [16, -1]},
        {"size": [1 << 20, 1 << 20]},
        {"size": [float("nan"), 16]},
        {"size": [float("inf"), 16]},
        {"size": 16},
        {"size": [16]},
        {"mean": [float("nan")] * 3},
        {"mean": [0.5] * 5},
        {"mean": []},
        {"std": []},
        {"std": [0.5, 0, 0.5]},
        {"std": [[0.5] * 3]},
        {"std": "wide"},
        {"crop_pct": 1e-9},
        {"crop_pct": -1},
        {"crop_pct": float("nan")},
        {"layout": "patches"},
        {"layout": "patches", "patch_size": 0, "merge_size": 1, "temporal_patch_size": 1},
        {"layout": ["image"]},
    ],
)
def test_records_that_no_image_can_be_prepared_by(picture: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        load_image(picture, {**IMAGENET, "size": [16, 16], **settings})
    assert not isinstance(caught.value, ImageError), "the image is not to blame"


def test_a_strip_is_not_made_wide_first(tmp_path: Path) -> None:
    Image.new("RGB", (1, 60_000)).save(tmp_path / "strip.png")
    with pytest.raises(ImageError, match="1 × 60000 pixels, too narrow"):
        load_image(tmp_path / "strip.png", {**IMAGENET, "size": [224, 224]})
