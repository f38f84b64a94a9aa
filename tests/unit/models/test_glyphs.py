"""The glyphs scenes, model and weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tcompile.core.errors import ModelError, UsageError
from tcompile.models import glyphs
from tcompile.models.glyphs import data
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED, evaluate, onnx_predict, torch_predict


def test_scenes_depend_on_seed_and_index_alone() -> None:
    images, labels, patches = data.batch(seed=5, start=10, count=4)
    again = data.scene(5, 12)
    assert np.array_equal(images[2], again.image)
    assert labels[2] == again.label
    assert np.array_equal(patches[2], again.patches)
    assert not np.array_equal(images[2], data.scene(6, 12).image)
    assert not np.array_equal(images[2], images[3])


def test_labels_follow_from_the_digits() -> None:
    for index in range(50):
        scene = data.scene(3, index)
        assert len(set(scene.digits)) == data.GLYPHS
        assert scene.label == sum(scene.digits) - data.SUM_MIN
        assert 0 <= scene.label < data.CLASSES
        # Every digit has patches of its own, and nothing else has.
        assert set(scene.patches.tolist()) == {*scene.digits, data.BACKGROUND}


def test_patch_labels_lie_where_the_ink_is() -> None:
    """The patches of a digit are those that differ from the scene without it."""
    scene = data.scene(3, 0)
    ink = scene.patches.reshape(data.GRID, data.GRID) != data.BACKGROUND
    pixels = scene.image.astype(np.float64)
    patches = pixels.reshape(data.GRID, data.PATCH, data.GRID, data.PATCH, 3)
    spread = patches.std(axis=(1, 3)).mean(axis=-1)
    assert np.median(spread[ink]) > 2 * np.median(spread[~ink])


def test_most_patches_do_not_matter() -> None:
    _, _, patches = data.batch(seed=3, start=0, count=50)
    assert 0.18 < (patches != data.BACKGROUND).mean() < 0.32


def test_preprocess_is_channels_first_and_normalised() -> None:
    image = np.zeros((1, 56, 56, 3), np.uint8)
    image[..., 1] = 255
    array = data.preprocess(image)
    assert array.shape == (1, 3, 56, 56)
    assert array.dtype == np.float32
    assert np.allclose(array[0, :, 0, 0], [-2.0, 2.0, -2.0])
    assert np.array_equal(data.preprocess(image[0]), array[0])


def test_importing_the_package_imports_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, tcompile.models.glyphs;"
        "assert not {'torch', 'PIL', 'safetensors'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_weights_are_small_and_fit_the_model() -> None:
    pytest.importorskip("torch")
    assert glyphs.WEIGHTS.stat().st_size < 4_000_000
    net = glyphs.load()
    assert not net.training
    assert net.config.grid**2 + 1 == net.pos_embed.shape[1] == 197


def test_other_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors"):
        glyphs.load(path)


def test_untrained_leaves_the_random_state_alone() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = glyphs.untrained(), glyphs.untrained()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.head.weight, second.head.weight)


def test_held_out_accuracy() -> None:
    pytest.importorskip("torch")
    scores = evaluate(torch_predict(glyphs.load()), n=400, batch_size=50)
    assert scores.top1 >= 0.95
    assert scores.patch_accuracy is not None
    assert scores.patch_accuracy >= 0.95
    assert scores.n == 400


def test_reduced_patch_logits_are_not_scored() -> None:
    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        count = len(images)
        return {
            "logits": np.zeros((count, data.CLASSES), np.float32),
            "patch_logits": np.zeros((count, 59, data.PATCH_CLASSES), np.float32),
        }

    scores = evaluate(predict, n=10)
    assert scores.patch_accuracy is None
    assert scores.ink_accuracy is None


def test_perfect_and_useless_predictions_score_one_and_little() -> None:
    _, labels, patches = data.batch(HELD_OUT_SEED, 0, 10)

    def perfect(images: np.ndarray) -> dict[str, np.ndarray]:
        assert len(images) == 10
        return {
            "logits": np.eye(data.CLASSES, dtype=np.float32)[labels],
            "patch_logits": np.eye(data.PATCH_CLASSES, dtype=np.float32)[patches],
        }

    scores = evaluate(perfect, n=10)
    assert (scores.top1, scores.patch_accuracy, scores.ink_accuracy) == (1.0, 1.0, 1.0)


@pytest.mark.heavy
def test_export_computes_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    net = glyphs.load()
    images = torch.from_numpy(data.preprocess(data.batch(HELD_OUT_SEED, 0, 2)[0]))
    path = tmp_path / "glyphs.onnx"
    torch.onnx.export(
        net,
        (images,),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits", "patch_logits"],
    )
    predict, batch = onnx_predict(path)
    assert batch == 2
    got = predict(data.preprocess(data.batch(HELD_OUT_SEED, 0, 2)[0]))
    expected = torch_predict(net)(images.numpy())
    for name, array in expected.items():
        assert np.abs(got[name] - array).max() < 1e-4 * np.abs(array).max()
    scores = evaluate(predict, n=40, batch_size=batch)
    assert scores == evaluate(torch_predict(net), n=40, batch_size=batch)


@pytest.mark.heavy
def test_training_writes_loadable_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from tcompile.models.glyphs.train import Settings, train

    settings = Settings(
        tmp_path / "out.safetensors", tmp_path / "cache", scenes=64, steps=3, threads=1, check=20
    )
    train(settings)
    assert "64 scenes" in capsys.readouterr().err
    glyphs.load(settings.out)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3


def test_training_on_the_held_out_scenes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tcompile.models.glyphs.train import Settings, train

    with pytest.raises(UsageError):
        train(Settings(tmp_path / "w", tmp_path, steps=1, seed=HELD_OUT_SEED))


def test_evaluating_something_else_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "other.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(ModelError, match=r"other\.onnx"):
        onnx_predict(path)
