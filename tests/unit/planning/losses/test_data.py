"""Calibration data from folders, arrays and scripts; labels; draws; digests."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.models.preprocess import PREPROCESS_KEY
from tcompile.planning.losses.data import Calibration, read_calibration, split
from tcompile.runtime.samples import samples_for
from tcompile.runtime.signature import signature
from tests.support.colours import save_colours, save_image
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(image=16, patch=8, width=8, heads=2, depth=1)
IMAGES = np.random.default_rng(0).normal(size=(10, 3, 16, 16)).astype(np.float32)
LABELS = np.arange(10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save_tiny_vit(tmp_path / "vit.onnx", SPEC, batch=None)
    proto = onnx.load(path)
    recipe = {"input": "image", "size": [16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    proto.metadata_props.add(key=PREPROCESS_KEY, value=json.dumps(recipe))
    onnx.save(proto, path)
    return path


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_arrays_and_their_labels(model: Path, tmp_path: Path) -> None:
    found = read_calibration(model, save(tmp_path / "x.npz", image=IMAGES, labels=LABELS))
    np.testing.assert_array_equal(found.samples.arrays["image"], IMAGES)
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.samples.real
    assert read_calibration(model, save(tmp_path / "y.npz", image=IMAGES)).labels is None


def test_a_folder_and_its_labels(model: Path, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for name, value in (("a.png", 255), ("b/c.png", 0), ("z.png", 127)):
        image_module.new("RGB", (16, 16), (value,) * 3).save(folder / name)
    assert read_calibration(model, folder).labels is None
    (folder / "labels.csv").write_text("file,label\nz.png,3\na.png,1\nb/c.png,2\n")
    found = read_calibration(model, folder)
    assert found.labels is not None
    # Whatever the order: white is 1, black is 2, grey is 3.
    by_label = dict(zip(found.labels.tolist(), found.samples.arrays["image"], strict=True))
    assert [float(by_label[i].mean().round(1)) for i in (1, 2, 3)] == [2.0, -2.0, -0.0]
    (folder / "labels.csv").write_text("a.png,1\n")
    with pytest.raises(UsageError, match=r"no label for b/c\.png"):
        read_calibration(model, folder)
    for label in ("cat", "9" * 10_000, '"' + "x" * 200_000 + '"'):
        (folder / "labels.csv").write_text(f"a.png,{label}\n")
        with pytest.raises(UsageError, match="whole numbers"):
            read_calibration(model, folder)
    (folder / "labels.csv").write_text(f"a.png,{10**19}\nb/c.png,1\nz.png,1\n")
    with pytest.raises(UsageError, match="class numbers"):
        read_calibration(model, folder)
    (folder / "labels.csv").unlink()
    os.mkfifo(folder / "labels.csv")
    with pytest.raises(UsageError, match="is a pipe"):
        read_calibration(model, folder)


def test_images_that_cannot_be_read_are_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        image_module.new("RGB", (16, 16), (60 * i,) * 3).save(folder / f"{i}.png")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "2.png").write_text("not an image")
    os.mkfifo(folder / "x.jpg")
    found = read_calibration(model, folder)
    words = r"2 samples from images \(3 of 5 images left out: .*0\.png: is not an image"
    assert re.match(words, found.samples.source)
    (folder / "labels.csv").write_text("3.png,3\n1.png,1\n")
    labelled = read_calibration(model, folder)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 3]
    np.testing.assert_array_equal(labelled.samples.arrays["image"], found.samples.arrays["image"])
    noted = pipeline.plan(model, method="fitprune", keep=0.5, calibration=folder).notes
    assert any(n.startswith("calibration: 3 of 5 images left out: ") for n in noted)
    # Where rows are told apart by the person, every image must be there.
    with pytest.raises(UsageError, match=r"0\.png: is not an image"):
        samples_for(signature(model), folder)
    for name in ("1.png", "3.png"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match=r"labels\.csv: names none of the images"):
        read_calibration(model, folder)
    (folder / "labels.csv").unlink()
    with pytest.raises(UsageError, match=r"none of the 3 images .*0\.png: is not an image"):
        read_calibration(model, folder)


LOADER = """
import numpy as np

def load_data():
    rng = np.random.default_rng(0)
    for _ in range(6):
        yield {"image": rng.normal(size=(3, 3, 16, 16)), "labels": rng.integers(0, 9, 3)}
"""


def test_a_loader_s_batches_are_joined(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    found = read_calibration(model, script)
    assert len(found) == 18
    whole = np.random.default_rng(0)
    images = np.concatenate(
        [(whole.normal(size=(3, 3, 16, 16)), whole.integers(0, 9, 3))[0] for _ in range(6)]
    )
    np.testing.assert_array_equal(found.samples.arrays["image"], images)
    again = read_calibration(model, script)
    assert again.digest == found.digest
    assert found.labels is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "defines no load_data"),
        ("def load_data(): return 1 / 0", "ZeroDivisionError"),
        ("def load_data(): return []", "must yield dicts"),
        ("def load_data(): return [[1]]", "must yield dicts"),
        ("def load_data(): return [{'image': 'x'}]", "not real numbers"),
        (
            "def load_data(): yield {'imgae': [[1.0]]}",
            "has 'imgae', which the model has no input for",
        ),
        (
            "import numpy as np\ndef load_data(): yield {'image': np.full((2, 3, 16, 16), np.nan)}",
            r"'image' has nan at \[0, 0, 0, 0\]",
        ),
        (
            "def load_data(): yield {'picture': [[1.0]]}; yield {'image': [[1.0]]}",
            "must yield dicts",
        ),
        (
            "import numpy as np\ndef load_data(): yield {'image': np.ones((2, 3, 8, 8))}",
            "n × 3 × 16",
        ),
        ("import sys\nsys.exit(3)", "SystemExit"),
        ("class Stop(BaseException): pass\nraise Stop('here')", "fails: Stop here"),
        ("def load_data(): raise GeneratorExit", "GeneratorExit"),
        ("def load_data(): yield {'image': [[1], [1, 2]]}", "fails: ValueError"),
        (
            "class Odd:\n    def __array__(self, *a, **k): raise BaseException('odd')\n"
            "def load_data(): yield {'image': Odd()}",
            "fails: BaseException odd",
        ),
        ("def load_data(): yield {'image': [[1.0]], 'labels': [1 << 99]}", "labels|image"),
        ("def load_data(): return 7", "TypeError"),
        ("import", "SyntaxError"),
        ("raise ValueError('x' * 100_000)", "fails: ValueError"),
    ],
)
def test_loaders_that_do_not_do(model: Path, tmp_path: Path, text: str, says: str) -> None:
    script = tmp_path / "loader.py"
    script.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_calibration(model, script)
    assert "loader.py" in caught.value.one_line()
    assert "\n" not in caught.value.one_line()


def test_an_interrupted_loader_is_an_interrupt(model: Path, tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        read_calibration(model, tmp_path / "loader.py")


@pytest.mark.parametrize("total", [2, 9, 10])
def test_parts_are_disjoint_and_all_there(model: Path, tmp_path: Path, total: int) -> None:
    path = save(tmp_path / "x.npz", image=IMAGES[:total], labels=LABELS[:total])
    whole = read_calibration(model, path)
    fit, check = split(whole, 3, bound=True)
    assert fit.labels is not None
    assert check.labels is not None
    assert sorted([*fit.labels, *check.labels]) == list(range(total))
    assert len(check) - len(fit) in (0, 1)
    np.testing.assert_array_equal(check.samples.arrays["image"], IMAGES[check.labels])
    assert split(whole, 3, bound=True)[0].digest == fit.digest


def test_one_image_cannot_be_split(model: Path, tmp_path: Path) -> None:
    whole = read_calibration(model, save(tmp_path / "x.npz", image=IMAGES[:1]))
    with pytest.raises(UsageError, match="two images"):
        split(whole, 0, bound=True)


def test_a_digest_tells_contents_apart(model: Path, tmp_path: Path) -> None:
    def read(**arrays: Any) -> Calibration:
        return read_calibration(model, save(tmp_path / "x.npz", **arrays))

    changed = IMAGES.copy()
    changed[3, 1, 2, 3] += 1e-3
    kinds = [
        {"image": IMAGES},
        {"image": IMAGES, "labels": LABELS},
        {"image": changed},
        {"image": IMAGES, "labels": LABELS[::-1]},
        {"image": IMAGES[:9]},
    ]
    assert len({read(**k).digest for k in kinds}) == len(kinds)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:9],
        LABELS - 1,
        LABELS / 2,
        np.array(["a"] * 10),
        LABELS.astype(np.uint64) + (1 << 63),
        LABELS + (1 << 40),
    ],
)
def test_labels_that_do_not_fit(model: Path, tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="labels"):
        read_calibration(model, save(tmp_path / "x.npz", image=IMAGES, labels=labels))


def test_classes_that_the_data_names_itself_are_not_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class 0 of a data set of cats and dogs is not class 0 of ImageNet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_pets.py").write_text(
        "from PIL import Image\n"
        "class Pets(list):\n    classes = ['cat', 'dog']\n"
        "def numbered(): return [(Image.new('RGB', (8, 8)), 1)] * 2\n"
        "def named(): return Pets(numbered())\n",
        encoding="utf-8",
    )
    model = save_colours(tmp_path / "colours.onnx")
    labels = read_calibration(model, "own_pets:numbered").labels
    assert labels is not None
    assert labels.tolist() == [1, 1]
    assert read_calibration(model, "own_pets:named").labels is None
    for name in ("cat/1.png", "dog/2.png"):
        save_image(tmp_path / "pets" / name, (9, 9, 9))
    assert read_calibration(model, tmp_path / "pets").labels is None
