"""Every kind of source gives its samples in order, with ids by which they are found again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import MissingExtraError, UsageError
from tcompile.data.base import ArrayItem, ImageItem, Source, Unreadable, plain_label
from tcompile.data.opening import open_source
from tests.support.colours import save_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def images(source: Source) -> list[tuple[str, Any]]:
    found = []
    for item in source.items():
        assert isinstance(item, ImageItem)
        found.append((item.id, item.label))
    return found


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/x/1.png", "dog/1.png"):
        save_image(tmp_path / name, RED)
    source = open_source(tmp_path)
    assert images(source) == [("cat/x/1.png", "cat"), ("dog/1.png", "dog"), ("dog/2.png", "dog")]
    assert (source.classes, source.count) == (("cat", "dog"), 3)
    assert images(source) == images(source)  # a new pass each time
    assert images(open_source(tmp_path, labels=False))[0][1] is None


def test_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", ".thumbs/1.png", "a/._1.png", "b/.old/x/2.png"):
        save_image(tmp_path / ".home" / name, RED)
    assert images(open_source(tmp_path / ".home")) == [("a/1.png", "a"), ("b/2.png", "b")]


def test_links_are_followed_and_not_in_circles(tmp_path: Path) -> None:
    """Class folders are often links to where a data set lies."""
    for name in ("cat", "dog"):
        save_image(tmp_path / f"all/{name}s/1.png", RED)
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / f"{name}s")
    (tmp_path / "all/dogs/back").symlink_to(tmp_path / "some")
    assert images(open_source(tmp_path / "some")) == [("cat/1.png", "cat"), ("dog/1.png", "dog")]


def test_without_labels(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        save_image(tmp_path / name, RED)
    source = open_source(tmp_path).without_labels()
    assert (images(source), source.classes) == ([("a/1.png", None), ("b/2.png", None)], ())
    assert images(source.spread(1)) == [("a/1.png", None)]
    source = open_source({"x": np.zeros((2, 3)), "labels": np.zeros(2)}).without_labels()
    (item,) = source.items()
    assert isinstance(item, ArrayItem)
    assert item.labels is None
    bad = Unreadable("1", "torn")
    assert list(Source("x", lambda: iter([bad])).without_labels().items()) == [bad]


@pytest.mark.parametrize("name", ["loose.png", "only/a.png"])
def test_folders_that_are_no_classes(tmp_path: Path, name: str) -> None:
    """An image beside the subfolders, or one subfolder alone."""
    save_image(tmp_path / "only/b.png", RED)
    save_image(tmp_path / name, RED)
    assert {label for _, label in images(open_source(tmp_path))} == {None}


def test_labels_csv_goes_before_subfolders(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        save_image(tmp_path / name, RED)
    (tmp_path / "labels.csv").write_text("file,label\na/1.png,7\nb/2.png,3\n", encoding="utf-8")
    source = open_source(tmp_path)
    assert [label for _, label in images(source)] == [7, 3]
    (tmp_path / "labels.csv").write_text("a/1.png,cat\nb/2.png,3\n", encoding="utf-8")
    assert [label for _, label in images(open_source(tmp_path))] == ["cat", "3"]
    (tmp_path / "labels.csv").write_text("a/1.png,cat\n", encoding="utf-8")
    source = open_source(tmp_path)
    items = [item for item in source.items() if isinstance(item, ImageItem)]
    source.check_label(items[0])
    with pytest.raises(UsageError, match=r"no label for b/2\.png"):
        source.check_label(items[1])


def test_a_row_without_a_label(tmp_path: Path) -> None:
    """The other labels stay numbers; the file is named that has none."""
    for name in ("1.png", "2.png"):
        save_image(tmp_path / name, RED)
    (tmp_path / "labels.csv").write_text("file,label\n1.png,7\n2.png,\n", encoding="utf-8")
    source = open_source(tmp_path)
    first, second = (item for item in source.items() if isinstance(item, ImageItem))
    assert (first.label, second.label, source.classes) == (7, None, ())
    with pytest.raises(UsageError, match=r"labels\.csv: has no label for 2\.png"):
        source.check_label(second)
    for text, says in (
        ("", "rows must be file,label"),
        ("1.png 7\n2.png 3\n", "rows must be file,label"),
        (
            "3.png,7\n",
            r"names none of the images: its first row is of '3.png', the first image is ",
        ),
        ("id,file,label\n1,1.png,7\n", ".*its first row is of 'id', the first image is '1.png'"),
        ("1.png,7\n2.png,3\n1.png,8\n", r"has two labels for 1\.png: 7 and 8"),
    ):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=rf"labels\.csv: {says}"):
            open_source(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "filename,class\n{1},7\n{2},3\n",
        "\ufeffimage_id,label\r\n{1},7\r\n{2},3\r\n",
        "{1};7\n{2};3\n",
        "{1},7.0\n{2},3.0\n",
        '"{1}","7"\n"./{2}","3"\n',
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, text: str) -> None:
    """Headings of any name, semicolons, numbers with a point, Windows' paths: numbers stay numbers,
    since names in alphabetical order would be other classes."""
    for name in ("a/1.png", "ü b.png"):
        save_image(tmp_path / name, RED)
    text = text.replace("{1}", "a\\1.png").replace("{2}", "ü b.png")
    for file in ("labels.csv", "list.csv"):
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert images(open_source(tmp_path)) == [("a/1.png", 7), ("ü b.png", 3)]
    found = images(open_source(tmp_path / "list.csv"))
    assert [(name.removeprefix("./"), label) for name, label in found] == [
        ("a/1.png", 7),
        ("ü b.png", 3),
    ]


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("l.txt", "a.png 3\n\nmy photo.png 12\n", [("a.png", 3), ("my photo.png", 12)]),
        ("l.txt", "a.png\nmy photo.png\n", [("a.png", None), ("my photo.png", None)]),
        ("l.lst", "a.png\t1\nb/c d.png\t0\n", [("a.png", 1), ("b/c d.png", 0)]),
        ("l.csv", "file,label\na.png,cat\nb.png,7\n", [("a.png", "cat"), ("b.png", "7")]),
        ("l.csv", "file\na.png\n", [("a.png", None)]),
        ("l.csv", "path,class\na.png,0\n", [("a.png", 0)]),
        ("l.tsv", "a.png\t2\n", [("a.png", 2)]),
        (
            "l.txt",
            "# mine\nmy photo.png cat\nb.png dog\n",
            [("my photo.png", "cat"), ("b.png", "dog")],
        ),
        ("l.txt", "sub\\a.png 1\n", [("sub/a.png", 1)]),
    ],
)
def test_lists(tmp_path: Path, name: str, text: str, want: list[tuple[str, Any]]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    save_image(tmp_path / want[-1][0], RED)  # one that is there; the others are counted when read
    source = open_source(tmp_path / name)
    assert images(source) == want
    assert source.count == len(want)
    (first, *_) = source.items()
    assert isinstance(first, ImageItem)
    assert first.image == tmp_path / want[0][0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no images"),
        ("a.png 1\nb.png\n", r"no label for b\.png"),
        (
            "c/a.png\nb.png\n",
            r"no image that is there: c/a\.png \(paths are relative to the folder",
        ),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "l.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        open_source(tmp_path / "l.txt")


def test_arrays(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", image=array, labels=np.arange(4))
    item = next(iter(items := open_source(tmp_path / "x.npy").items()))
    assert isinstance(item, ArrayItem)
    np.testing.assert_array_equal(item.arrays["arr_0"], array)
    assert not list(items)
    source = open_source(tmp_path / "x.npz")
    (item,) = source.items()
    assert isinstance(item, ArrayItem)
    assert item.labels is not None
    assert (source.count, item.labels.tolist(), set(item.arrays)) == (4, [0, 1, 2, 3], {"image"})
    (item,) = open_source({"image": array}).items()
    assert isinstance(item, ArrayItem)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"cannot be read as \.npy"):
        open_source(tmp_path / "o.npy")


SCRIPT = """
import numpy as np
print("noise")
def load_data():
    for i in range(3):
        yield {"image": np.full((2, 3), i), "labels": np.array([i, i])}
def bad():
    yield {"image": np.zeros(1)}
    raise SystemExit("gone")
"""


def test_a_script_is_run_batch_by_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loader.py"
    path.write_text(SCRIPT, encoding="utf-8")
    items = open_source(path).items()
    first = next(items)
    assert isinstance(first, ArrayItem)
    assert first.arrays["image"].tolist() == [[0] * 3] * 2
    assert len(list(items)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "noise\n")
    with pytest.raises(UsageError, match="fails: SystemExit gone"):
        list(open_source(f"{path}:bad").items())
    with pytest.raises(UsageError, match=r"defines no other\(\)"):
        list(open_source(f"{path}:other").items())
    (tmp_path / "empty.py").write_text("def load_data(): return [1]", encoding="utf-8")
    with pytest.raises(UsageError, match="must yield dicts"):
        list(open_source(tmp_path / "empty.py").items())


class Dataset:
    """As torchvision's: an index, a length, classes."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        image = Image.new("RGB", (4, 4), RED)
        if i == 1:
            raise OSError("disk error")
        return [(image, 0), None, (np.zeros((4, 4, 3), np.uint8), np.int64(1)), (image, None)][i]


def test_a_data_set_of_a_program() -> None:
    source = open_source(Dataset())
    first, second, third, fourth = source.items()
    assert isinstance(first, ImageItem)
    assert (first.id, first.label) == ("0", 0)
    assert second == Unreadable("1", "OSError disk error")
    assert isinstance(third, ImageItem)
    assert isinstance(third.image, Image.Image)
    assert third.label == 1
    assert isinstance(fourth, ImageItem)
    assert fourth.label is None
    assert (source.count, source.classes) == (4, ("cat", "dog"))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4), (3, 5, 6), (1, 5, 6)])
def test_whole_pixels_are_images_in_any_layout(shape: tuple[int, ...]) -> None:
    """As OpenCV, MNIST and `torchvision.io` give them, which are not prepared for a model."""
    (item,) = open_source([(np.full(shape, 200, np.uint8), 1)]).items()
    assert isinstance(item, ImageItem)
    assert isinstance(item.image, Image.Image)
    assert item.image.size == (6, 5)
    assert item.image.convert("RGB").getpixel((0, 0)) == (200, 200, 200)


def test_batches_of_a_loader() -> None:
    """What PyTorch's DataLoader gives: inputs and classes, collated."""

    class Loader:
        batch_size = 2

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Any]:
            yield np.zeros((2, 3, 4, 4)), np.array([0, 1])
            yield np.zeros((1, 3, 4, 4)), np.array([2])

    first, second = open_source(Loader()).items()
    assert isinstance(first, ArrayItem)
    assert isinstance(second, ArrayItem)
    assert first.arrays["arr_0"].shape == (2, 3, 4, 4)
    assert first.labels is not None
    assert second.labels is not None
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, 1], [2])
    (bare, _) = open_source(Loader()).without_labels().items()
    assert isinstance(bare, ArrayItem)
    assert bare.labels is None


def test_several_numbers_are_no_class() -> None:
    """One-hot, say, which is told; boxes and maps are something else."""
    picture = Image.new("RGB", (2, 2))
    for image in (picture, np.zeros((3, 2, 2))):
        for label in (np.eye(3)[0], [0, 1, 0]):
            source = open_source([(image, label)])
            (item,) = source.items()
            assert isinstance(item, (ImageItem, ArrayItem))
            assert item.label_fault == "sample 0 has 3 numbers for a class, not one, or a name"
            (item,) = source.without_labels().items()
            assert isinstance(item, (ImageItem, ArrayItem))
            assert item.label_fault == ""
    for label in ({"boxes": []}, [{"bbox": []}, {"bbox": []}], np.zeros((2, 2)), picture, None):
        (item,) = open_source([(picture, label)]).items()
        assert isinstance(item, ImageItem)
        assert (item.label, item.label_fault) == (None, "")
    with pytest.raises(UsageError, match=r"has no image: it has x, y \(a pair"):
        list(open_source([{"x": picture, "y": 1}]).items())


def test_an_iterable_of_prepared_tensors() -> None:
    first, second = open_source(
        iter([(np.zeros((3, 2, 2)), 5), {"image": np.ones((3, 2, 2))}])
    ).items()
    assert isinstance(first, ArrayItem)
    assert first.arrays["arr_0"].shape == (1, 3, 2, 2)
    assert first.labels is not None
    assert first.labels.tolist() == [5]
    assert isinstance(second, ArrayItem)
    assert second.labels is None


def test_a_callable_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_photos.py").write_text(
        "from PIL import Image\n"
        "def val(): return [(Image.new('RGB', (2, 2)), 3)]\n"
        "def needy(path): return []\n",
        encoding="utf-8",
    )
    assert images(open_source("own_photos:val")) == [("0", 3)]
    assert str(tmp_path) not in sys.path
    for spec, says in (
        ("own_photos:none", "AttributeError"),
        ("own_photos:needy", "TypeError"),
        ("no_such_module:val", "ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError, match=f"cannot be called: {says}"):
            open_source(spec)
    del sys.modules["own_photos"]


def test_what_a_data_set_prints_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud_photos.py").write_text(
        "from PIL import Image\n"
        "print('import')\n"
        "class Val:\n"
        "    def __init__(self): print('call')\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i): print('item'); return Image.new('RGB', (2, 2)), 3\n"
        "def stream(): print('next'); yield Image.new('RGB', (2, 2)), 3\n",
        encoding="utf-8",
    )
    for spec in ("loud_photos:Val", "loud_photos:stream"):
        assert images(open_source(spec)) == [("0", 3)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err.split()) == ("", ["import", "call", "item", "next"])
    del sys.modules["loud_photos"]


def test_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(save_image(tmp_path / f"{i}.png", RED)) for i in range(2)]
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    data = datasets.Dataset.from_dict({"img": files, "label": [1, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "one"))
    source = open_source(tmp_path / "one")
    assert images(source) == [("0", 1), ("1", 0)]
    assert (source.count, source.classes) == (2, ("cat", "dog"))
    (first, _) = source.items()
    assert isinstance(first, ImageItem)
    assert isinstance(first.image, bytes)  # decoded as every image is, not by that library
    datasets.DatasetDict({"train": data, "val": data}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UsageError, match=r"several splits: train, val \(give the folder of one"):
        open_source(tmp_path / "two")
    assert images(open_source(tmp_path / "two/val")) == [("0", 1), ("1", 0)]
    plain = datasets.Dataset.from_dict({"text": ["a"]})
    plain.save_to_disk(str(tmp_path / "text"))
    with pytest.raises(UsageError, match="has no column of images, it has text"):
        open_source(tmp_path / "text")


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for module in ("datasets", "av"):
        monkeypatch.setitem(sys.modules, module, None)
    for path in (tmp_path, tmp_path / "x.mp4"):
        with pytest.raises(MissingExtraError, match=r"pip install 'tcompile\[data\]'"):
            open_source(path)


def test_frames_of_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(7):
            pixels = np.full((32, 32, 3), 30 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    source = open_source(path, every=3)
    items = [item for item in source.items() if isinstance(item, ImageItem)]
    assert [item.id for item in items] == ["clip.mp4@0", "clip.mp4@3", "clip.mp4@6"]
    assert source.count == 3
    assert {item.clip for item in items} == {str(path)}
    means = [np.asarray(item.image).mean() for item in items]
    np.testing.assert_allclose(means, [0, 90, 180], atol=8)
    path.write_bytes(b"no video")
    with pytest.raises(UsageError, match="not a video that PyAV can read"):
        open_source(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nothing.png", "no such file"),
        ("nothing", r"no such file \(an image, a folder of images, a list"),
        ("x.bin", "unknown kind of data"),
        ("empty", "no images in this folder"),
        (3, "gives int, which has neither items nor an iterator"),
    ],
)
def test_what_is_no_data(tmp_path: Path, data: Any, says: str) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=says):
        open_source(tmp_path / data if isinstance(data, str) else data)


def test_labels_of_other_libraries() -> None:
    torch = pytest.importorskip("torch")
    given = (3, "cat", np.int32(4), np.array([5]), torch.tensor(6), None, True, 0.5)
    assert [plain_label(x) for x in given] == [*(3, "cat", 4, 5, 6), *(None, None, None)]
