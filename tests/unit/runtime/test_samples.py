"""Inputs from files and seeds, and batches of the size a model wants."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tcompile.core.errors import UsageError
from tcompile.models.preprocess import PREPROCESS_KEY
from tcompile.runtime.samples import Samples, batches, run_all, samples_for
from tcompile.runtime.signature import Signature, signature
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
    np.savez(tmp_path / "one.npz", array)
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
        ("names.npz", "has 'a', 'b', which the model has no input for; the model takes 'image'"),
        ("typo.npz", "has 'imgae', which the model has no input for; the model takes 'image'"),
        ("more.npz", "has 'image2', which the model has no input for"),
        ("two.npz", "has 'arr_0', 'arr_1', which the model has no input for"),
        ("labels.npz", "holds no array for 'image'"),
        ("nan.npz", r"nan\.npz: 'image' has nan at \[1, 2, 3, 4\], 1 of its 6144 values"),
        ("inf.npy", r"inf\.npy: 'image' has -inf at \[0, 0, 0, 0\], 6144 of its 6144 values"),
        ("large.npz", r"'image' has 1e\+300 at \[0, 1, 0, 0\], which is not a value of .* float32"),
        ("complex.npz", "'image' holds complex64, not real numbers"),
        ("words.npz", "'image' holds <U1, not real numbers"),
        ("member.npz", "cannot be read as .npz"),
        ("flat.npz", "'image' is n × 3 × 32 × 32, the data 2 × 3072"),
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
    good = np.ones((2, 3, 32, 32), dtype=np.float32)
    nan, large = good.copy(), good.astype(np.float64)
    nan[1, 2, 3, 4], large[0, 1] = np.nan, 1e300
    np.savez(tmp_path / "typo.npz", imgae=good)
    np.savez(tmp_path / "more.npz", image=good, image2=good)
    np.savez(tmp_path / "two.npz", good, good)
    np.savez(tmp_path / "labels.npz", labels=np.zeros(2))
    np.savez(tmp_path / "nan.npz", image=nan)
    np.save(tmp_path / "inf.npy", good * -np.inf)
    np.savez(tmp_path / "large.npz", image=large)
    np.savez(tmp_path / "complex.npz", image=good * 1j)
    np.savez(tmp_path / "words.npz", image=np.array(["a"]))
    np.savez(tmp_path / "flat.npz", image=good.reshape(2, -1))
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("image", b"not an array")
    (tmp_path / "model.bin").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        samples_for(model, tmp_path / name)


def test_arrays_for_inputs_of_other_types(tmp_path: Path) -> None:
    """ids, a mask and half floats: values that the types hold, and ones for what is not given."""
    entries = [
        ("image", TensorProto.FLOAT16, [None, 3, 2, 2]),
        ("ids", TensorProto.INT32, [None, 4]),
        ("mask", TensorProto.BOOL, [None, 4]),
    ]
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in entries]
    node = helper.make_node("Identity", ["image"], ["out"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT16, [None, 3, 2, 2])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", given, [out])), str(path))
    model, image = signature(path), np.ones((2, 3, 2, 2))

    def read(**arrays: np.ndarray) -> Samples:
        np.savez(tmp_path / "x.npz", image=image, **arrays)
        return samples_for(model, tmp_path / "x.npz")

    whole = read(ids=np.full((2, 4), 7.0), mask=np.zeros((2, 4), np.int64))
    assert whole.source == "2 samples from x.npz"
    assert read().source == "2 samples from x.npz (ones for ids, mask)"
    assert read().arrays["ids"].tolist() == [[1] * 4] * 2
    for arrays, says in (
        ({"ids": np.full((2, 4), 0.5)}, r"'ids' has 0\.5 at \[0, 0\], .* type int32"),
        ({"ids": np.full((2, 4), 2**40)}, "'ids' has 1099511627776 at"),
        ({"mask": np.full((2, 4), 2)}, r"'mask' has 2 at \[0, 0\], .* type bool"),
        ({"mask": np.full((2, 4), -np.inf)}, "'mask' has -inf at .* write -1e4"),
    ):
        with pytest.raises(UsageError, match=says):
            read(**arrays)
    np.savez(tmp_path / "x.npz", image=image * 1e5)
    with pytest.raises(UsageError, match=r"'image' has 100000\.0 at .* type float16"):
        samples_for(model, tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", ids=np.ones((2, 4)))
    with pytest.raises(UsageError, match=r"no array for 'image'; .* 'image', 'ids', 'mask'"):
        samples_for(model, tmp_path / "x.npz")


def test_images_of_bytes_are_not_made_up(tmp_path: Path) -> None:
    """Ones stand in for masks and ids, never for an image, whatever its type."""
    entries = [
        ("mask", TensorProto.FLOAT, [None, 4]),
        ("image", TensorProto.UINT8, [None, 4, 4, 3]),
    ]
    given = [helper.make_tensor_value_info(*entry) for entry in entries]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 4])
    node = helper.make_node("Identity", ["mask"], ["out"])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", given, [out])), str(path))
    np.savez(tmp_path / "x.npz", mask=np.ones((2, 4)))
    with pytest.raises(UsageError, match="holds no array for 'image'; the model takes 'mask', 'im"):
        samples_for(signature(path), tmp_path / "x.npz")
    pixels = np.full((2, 4, 4, 3), 255.0)
    np.savez(tmp_path / "x.npz", image=pixels)
    assert samples_for(signature(path), tmp_path / "x.npz").source.endswith("(ones for mask)")
    np.savez(tmp_path / "x.npz", image=pixels + 1)
    with pytest.raises(UsageError, match=r"'image' has 256\.0 at \[0, 0, 0, 0\], .* type uint8"):
        samples_for(signature(path), tmp_path / "x.npz")


def test_images_are_prepared_as_the_model_says(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    settings = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "labels": ["a", "b"]}
    path = tmp_path / "vit.onnx"
    model = build_vit(VitSpec(), batch=None)
    onnx.helper.set_model_props(model, {PREPROCESS_KEY: json.dumps(settings)})
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


def test_a_name_that_is_no_text_can_be_shown() -> None:
    samples = Samples({"x": np.zeros((1, 1))}, "a folder", True, ids=("in/\udcff.png",))
    assert samples.name_of(0) == "\ufffd.png"
