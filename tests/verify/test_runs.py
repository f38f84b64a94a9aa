"""Inputs from files and seeds, and batches of the size a model wants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.errors import UsageError
from tcompile.models.preprocess import PREPROCESS_KEY
from tcompile.verify.runs import Signature, batches, run_all, samples_for, signature
from tests.support.tiny_vit import VitSpec, build_vit, save_tiny_vit


@pytest.fixture
def model(tmp_path: Path) -> Signature:
    return signature(save_tiny_vit(tmp_path / "vit.onnx", batch=4))


def test_signature(model: Signature) -> None:
    assert model.batch == 4
    assert model.image_input is not None
    assert model.image_input.shape == (4, 3, 32, 32)
    assert model.preprocessing == {}


def test_random_inputs_depend_on_the_seed_alone(model: Signature) -> None:
    first, again, other = (samples_for(model, count=3, seed=s).arrays["image"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.shape == (3, 3, 32, 32)


def test_batches_are_full_and_say_how_many_rows_count(model: Signature) -> None:
    parts = list(batches(samples_for(model, count=6), 4))
    assert [(len(arrays["image"]), rows) for arrays, rows in parts] == [(4, 4), (4, 2)]
    assert [rows for _, rows in batches(samples_for(model, count=20), None)] == [8, 8, 4]


def test_run_all_gives_one_row_a_sample(model: Signature, tmp_path: Path) -> None:
    samples = samples_for(model, count=6)
    whole = run_all(model.path, samples)["logits"]
    assert whole.shape == (6, 10)
    single = save_tiny_vit(tmp_path / "one.onnx", batch=1)
    np.testing.assert_allclose(run_all(single, samples)["logits"], whole, atol=1e-5)


def test_npy_and_npz(model: Signature, tmp_path: Path) -> None:
    array = np.ones((2, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", image=array, labels=np.zeros(2))
    np.savez(tmp_path / "one.npz", anything=array)
    np.save(tmp_path / "single.npy", array[0])
    for name, count in (("x.npy", 2), ("x.npz", 2), ("one.npz", 2), ("single.npy", 1)):
        samples = samples_for(model, tmp_path / name)
        assert (len(samples), samples.real) == (count, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.npy", "no such file"),
        ("shape.npy", "the data 2 × 3 × 16 × 16"),
        ("pickle.npy", "cannot be read"),
        ("text.npy", "cannot be read"),
        ("text.npz", "cannot be read"),
        ("torn.npz", "cannot be read"),
        ("array.npz", "cannot be read"),
        ("names.npz", "no array for any input"),
        ("model.bin", "unknown kind of data"),
        ("empty", "does not say how images are prepared"),
    ],
)
def test_bad_data(model: Signature, tmp_path: Path, name: str, message: str) -> None:
    np.save(tmp_path / "shape.npy", np.ones((2, 3, 16, 16)))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones(3))
    np.savez(tmp_path / "names.npz", a=np.ones(1), b=np.ones(1))
    (tmp_path / "model.bin").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        samples_for(model, tmp_path / name)


def test_images_are_prepared_as_the_model_says(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    settings = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "labels": ["a", "b"]}
    path = tmp_path / "vit.onnx"
    model = build_vit(VitSpec(), batch=None, metadata={PREPROCESS_KEY: json.dumps(settings)})
    onnx.save(model, str(path))
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    for name, level in (("b.png", 255), ("a.JPG", 0)):
        pixels = np.full((40, 64, 3), level, dtype=np.uint8)
        image_module.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    described = signature(path)
    assert described.preprocessing["labels"] == ["a", "b"]
    samples = samples_for(described, tmp_path / "images")
    assert samples.arrays["image"].shape == (2, 3, 32, 32)
    # In the order of their names: black is (0 - 0.5) / 0.25, white the same upwards.
    np.testing.assert_allclose(samples.arrays["image"].mean(axis=(1, 2, 3)), [-2, 2], atol=0.05)
    assert len(samples_for(described, folder / "b.png")) == 1
    empty = tmp_path / "none"
    empty.mkdir()
    with pytest.raises(UsageError, match="no images"):
        samples_for(described, empty)
