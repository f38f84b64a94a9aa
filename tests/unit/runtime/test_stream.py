"""A source as chunks: in order, of the size asked for, a little at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcompile.core.errors import UsageError
from tcompile.data.base import ArrayItem, ImageItem, Item, Source, Unreadable
from tcompile.data.opening import open_source
from tcompile.runtime.decoding import Unread
from tcompile.runtime.samples import samples_for
from tcompile.runtime.signature import Signature, signature
from tcompile.runtime.stream import Chunk, chunks
from tests.support.colours import save_colours, save_image


@pytest.fixture
def model(tmp_path: Path) -> Signature:
    return signature(save_colours(tmp_path / "colours.onnx"))


def of(items: list[Item]) -> Source:
    return Source("some", lambda: iter(items), len(items))


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value,) * 3)


def values(found: list[Chunk]) -> list[int]:
    return [round(float(row.mean()) * 255) for c in found for row in c.samples.arrays["image"]]


def test_chunks_are_in_order_and_full(model: Signature) -> None:
    items: list[Item] = [ImageItem(f"{i}", grey(i), label=i) for i in range(10)]
    items.insert(4, Unreadable("gone", "a reason"))
    unread: list[Unread] = []
    found = list(chunks(model, of(items), 4, unread))
    assert [len(c) for c in found] == [4, 4, 2]
    assert values(found) == list(range(10))
    assert [label for c in found for label in c.labels] == list(range(10))
    assert [(u.id, u.error.what) for u in unread] == [("gone", "a reason")]
    limited = list(chunks(model, of(items), 4, [], limit=5))
    assert values(limited) == [0, 1, 2, 3, 4]


def test_a_limit_takes_some_of_everything(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for i in range(4):
            save_image(tmp_path / f"d/{name}/{i}.png", (i, i, i))
    (tmp_path / "l.txt").write_text("".join(f"d/{n}/{i}.png\n" for n in "abc" for i in range(4)))
    wanted = ["a/0.png", "b/0.png", "c/0.png"]
    for data in (tmp_path / "d", tmp_path / "l.txt", [(grey(i), i // 4) for i in range(12)]):
        source = open_source(data).spread(3)
        items = [item for item in source.items() if isinstance(item, ImageItem)]
        ids = ["0", "4", "8"] if isinstance(data, list) else wanted
        assert [item.id.removeprefix("d/") for item in items] == ids
        assert source.count == 3
        assert len(list(open_source(data).spread(99).items())) == 12
    first = open_source(iter([(grey(0), 0)]))
    assert first.spread(1) is first


def test_no_more_is_read_than_is_needed(model: Signature) -> None:
    """Constant memory: a source without end, of which only a little is ahead of what was used."""
    given = 0

    def endless() -> Iterator[Item]:
        nonlocal given
        while True:
            yield ImageItem(f"{given}", grey(given % 200))
            given += 1

    running = chunks(model, Source("endless", endless), 8, [])
    for i in range(1, 6):
        next(running)
        assert given <= 8 * i + 65
    running.close()


def test_arrays_are_cut_and_small_batches_put_together(model: Signature) -> None:
    array = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    array /= 255
    whole = list(chunks(model, of([ArrayItem({"image": array}, np.arange(10))]), 4, []))
    assert ([len(c) for c in whole], values(whole)) == ([4, 4, 2], list(range(10)))
    assert whole[1].ids == ("sample 5", "sample 6", "sample 7", "sample 8")
    assert whole[1].labels == (4, 5, 6, 7)
    single: list[Item] = [ArrayItem({"arr_0": row[np.newaxis]}) for row in array]
    found = list(chunks(model, of(single), 4, []))
    assert ([len(c) for c in found], values(found)) == ([4, 4, 2], list(range(10)))
    one = list(chunks(model, of([ArrayItem({"image": array[3]})]), 4, []))
    assert values(one) == [3]


@pytest.mark.parametrize("kind", ["npy", "npz", "packed npz"])
def test_arrays_of_files_are_read_a_few_rows_at_a_time(
    model: Signature, tmp_path: Path, kind: str
) -> None:
    """Constant memory: of 15 MB, one chunk of 77 kB is held, and the next one made."""
    array = np.random.default_rng(0).random((20_000, 3, 8, 8), np.float32)
    path = tmp_path / f"x.{kind.split()[-1]}"
    if kind == "npy":
        np.save(path, array)
    else:
        save = np.savez_compressed if kind.startswith("packed") else np.savez
        save(path, image=array, labels=np.arange(20_000))
    tracemalloc.start()
    try:
        total, first = 0, 0
        for chunk in chunks(model, open_source(path), 100, []):
            here = array[first : first + 100]
            np.testing.assert_array_equal(chunk.samples.arrays["image"], here)
            if kind != "npy":
                assert chunk.labels == tuple(range(first, first + 100))
            first += 100
            total += len(chunk)
        assert total == 20_000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert len(list(chunks(model, open_source(path), 100, [], limit=250))) == 3


def test_an_array_by_columns_and_one_that_is_cut_off(model: Signature, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((7, 3, 8, 8), np.float32)
    np.savez(tmp_path / "x.npz", image=np.asfortranarray(array))
    found = list(chunks(model, open_source(tmp_path / "x.npz"), 3, []))
    np.testing.assert_array_equal(
        np.concatenate([chunk.samples.arrays["image"] for chunk in found]), array
    )
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    np.testing.assert_array_equal(
        next(chunks(model, open_source(tmp_path / "x.npy"), 9, [])).samples.arrays["image"], array
    )
    # Damaged in the middle: known when it is read, and said of the file.
    path = tmp_path / "torn.npz"
    np.savez_compressed(path, image=array)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"torn\.npz: cannot be read as \.npz"):
        list(chunks(model, open_source(path), 3, []))


@pytest.mark.parametrize(
    ("labels", "says"),
    [(np.arange(3), "labels must be 2 class numbers"), (np.array([0.5, 1]), "class numbers")],
)
def test_labels_that_do_not_fit(model: Signature, labels: np.ndarray, says: str) -> None:
    item = ArrayItem({"image": np.zeros((2, 3, 8, 8), np.float32)}, labels)
    with pytest.raises(UsageError, match=says):
        list(chunks(model, of([item]), 4, []))


def test_a_damaged_image_is_named_by_its_id(model: Signature, tmp_path: Path) -> None:
    unread: list[Unread] = []
    items: list[Item] = [ImageItem("7", b"not an image"), ImageItem("8", grey(3))]
    assert values(list(chunks(model, of(items), 4, unread))) == [3]
    assert unread[0].id == "7"
    assert unread[0].error.one_line() == "7: is not an image that pillow can read"


def test_other_commands_hold_no_more_than_fits(
    model: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large folder some images, equally far apart, and it is said."""
    for i in range(10):
        save_image(tmp_path / f"photos/{i}.png", (i, i, i))
    monkeypatch.setattr("tcompile.runtime.samples._HELD", 5 * 3 * 8 * 8 * 4)
    found = samples_for(model, tmp_path / "photos")
    assert found.ids == ("0.png", "2.png", "4.png", "6.png", "8.png")
    assert found.source == "5 samples from photos (5 of 10, equally far apart)"


def test_other_commands_take_the_same_forms(model: Signature, tmp_path: Path) -> None:
    """`samples_for` is what verify --data, --calibration and run --input read with."""
    for i, colour in enumerate(((255, 0, 0), (0, 0, 255))):
        save_image(tmp_path / f"photos/{i}.png", colour)
    (tmp_path / "list.txt").write_text("photos/1.png 4\nphotos/0.png 2\n", encoding="utf-8")
    found = samples_for(model, tmp_path / "list.txt", labels=True)
    assert (found.ids, found.labels) == (("photos/1.png", "photos/0.png"), (4, 2))
    assert found.source == "2 samples from list.txt"
    np.testing.assert_array_equal(found.arrays["image"][:, :, 0, 0], [[0, 0, 1], [1, 0, 0]])
    (tmp_path / "loader.py").write_text(
        "import numpy as np\ndef load_data():\n"
        "    for i in range(2): yield {'image': np.full((2, 3, 8, 8), i, np.float32)}\n",
        encoding="utf-8",
    )
    assert samples_for(model, tmp_path / "loader.py").arrays["image"].shape == (4, 3, 8, 8)
    assert open_source(tmp_path / "list.txt").count == 2
