"""Data sets with an index: a callable of yours that makes one, or one of Hugging Face's on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.core.arrays import UNNAMED
from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.data.base import Array, ArrayItem, ImageItem, Item, Source, Unreadable, plain_label

#: Columns that hold images and classes, the likeliest first.
_IMAGES = ("image", "img", "pixel_values", "picture", "photo")
_LABELS = ("label", "labels", "fine_label", "class", "target")
_LABEL_TYPES = ("int64", "int32", "string")
_END = object()
#: Files that `datasets` writes into the folder of a data set, and into that of several splits.
_HF_SET, _HF_SPLITS = ("dataset_info.json", "state.json"), "dataset_dict.json"


def callable_source(spec: str) -> Source:
    """What `pkg.mod:callable` returns when it is called without arguments: a data set as
    torchvision's are, or anything that can be iterated. See `dataset_source`.

    The module is imported and the callable run, with all that it may do: only because it was named.
    What it prints goes to stderr.

    Raises:
        UsageError: it cannot be imported or called, or returns something else.
    """
    path, _, name = spec.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # a console script does not have the working directory on its path; people expect it
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):
            found: Any = import_module(path)
            for part in name.split("."):
                found = getattr(found, part)
            made = found()
    except Exception as error:  # it is the caller's code
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UsageError(
            f"cannot be called: {said}",
            where=spec,
            hint="MODULE:CALLABLE, which takes no arguments and returns a data set",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    return dataset_source(made, spec)


def dataset_source(dataset: Any, name: str) -> Source:
    """The samples of a data set, each an image or (image, class).

    An image is one of pillow's, a path, or uint8 pixels [H, W], [H, W, C] or [C, H, W]. Anything
    else is an input that is prepared already, such as the tensor [3, H, W] that a transform of
    torchvision makes; of a DataLoader of PyTorch a batch of them. A sample may also be a mapping,
    with the image as `image` or `pixel_values`, the class as `label`. A sample that cannot be had
    is left out like an image that cannot be read. Names of classes are those of its `classes`. What
    its code prints goes to stderr.

    Raises:
        UsageError: it cannot be iterated; (in the pass) a sample has no image.
    """
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not indexed and not hasattr(dataset, "__iter__"):
        raise UsageError(
            f"gives {type(dataset).__name__}, which has neither items nor an iterator", where=name
        )
    with redirect_stdout(sys.stderr):
        classes = getattr(dataset, "classes", None) or ()
        count = len(dataset) if indexed else 0
    names = tuple(classes) if all(isinstance(c, str) for c in classes) else ()

    if not indexed:
        batched = getattr(dataset, "batch_size", None) is not None
        make = _batch if batched else _item
        return Source(
            name,
            lambda: (make(f"{i}", x, name) for i, x in enumerate(_samples(dataset))),
            classes=names,
        )

    def item(i: int) -> Item:
        try:
            with redirect_stdout(sys.stderr):
                sample = dataset[i]
        except Exception as error:  # of the data set's own code
            return Unreadable(f"{i}", " ".join(f"{type(error).__name__} {error}".split()))
        return _item(f"{i}", sample, name)

    return Source(name, lambda: map(item, range(count)), count, names, item=item)


def _samples(dataset: Any) -> Iterator[Any]:
    """What can be iterated. stdout is for results: it is the data set's only while that runs."""
    with redirect_stdout(sys.stderr):
        samples = iter(dataset)
    while True:
        with redirect_stdout(sys.stderr):
            sample = next(samples, _END)
        if sample is _END:
            return
        yield sample


def _item(number: str, sample: Any, name: str) -> Item:
    image, label = _parts(number, sample, name)
    found, fault = plain_label(label), ""
    if found is None and (count := _several(label)) > 1:
        fault = f"sample {number} has {count} numbers for a class, not one, or a name"
    if isinstance(image, str):
        image = Path(image)
    if isinstance(image, Path) or _is_pil(image):
        return ImageItem(number, image, found, label_fault=fault)
    array = np.asarray(image)
    if (pixels := _pixels(array)) is not None:
        pillow = require("PIL.Image", "cpu", "preparing images")
        return ImageItem(number, pillow.fromarray(pixels), found, label_fault=fault)
    labels = None if found is None else np.asarray([found])
    return ArrayItem({UNNAMED: array[np.newaxis]}, labels, label_fault=fault)


def _batch(number: str, sample: Any, name: str) -> ArrayItem:
    """Prepared inputs, and their classes, as a DataLoader collates them."""
    image, label = _parts(number, sample, name)
    found = None if label is None else np.asarray(label)
    return ArrayItem({UNNAMED: np.asarray(image)}, found)


def _parts(number: str, sample: Any, name: str) -> tuple[Any, Any]:
    """Image and class of a sample."""
    image, label, has = sample, None, ""
    if isinstance(sample, Mapping):
        image = next((sample[key] for key in _IMAGES if key in sample), None)
        label = next((sample[key] for key in _LABELS if key in sample), None)
        has = f": it has {', '.join(map(str, sample))}"
    elif isinstance(sample, (tuple, list)) and sample:
        image, label = sample[0], sample[1] if len(sample) > 1 else None
    if image is None:
        raise UsageError(
            f"sample {number} has no image{has}",
            where=name,
            hint="a pair of image and class, or a mapping with 'image' and 'label'",
        )
    return image, label


def _several(label: Any) -> int:
    """How many numbers there are in place of one; 0 for anything else, such as boxes or a map."""
    if isinstance(label, (list, tuple)):
        return len(label) if all(isinstance(each, (int, float)) for each in label) else 0
    array = np.asarray(label) if hasattr(label, "__array__") else np.empty(0)
    return len(array) if array.ndim == 1 and array.dtype.kind in "biuf" else 0


def _pixels(array: Array) -> Array | None:
    """Whole pixels of one image as pillow takes them; None of anything else."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        return None
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or array.shape[2] in (3, 4)
    return np.ascontiguousarray(array) if fits else None


def _is_pil(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def is_hf_folder(folder: Path) -> bool:
    """Whether `datasets` wrote it (`save_to_disk`)."""
    return (folder / _HF_SPLITS).is_file() or all((folder / n).is_file() for n in _HF_SET)


def hf_source(folder: Path) -> Source:
    """A data set that Hugging Face's `datasets` saved to disk: its column of images, and that of
    classes where there is one. Nothing is fetched.

    Raises:
        UsageError: it holds several splits, cannot be read, or has no images.
        MissingExtraError: `datasets` is not installed.
    """
    if (folder / _HF_SPLITS).is_file():
        splits = sorted(p.parent.name for p in folder.glob(f"*/{_HF_SET[1]}")) or ["none"]
        raise UsageError(
            f"holds several splits: {', '.join(splits)}",
            where=str(folder),
            hint=f"give the folder of one, such as {folder / splits[-1]}",
        )
    library = require("datasets", "data", "reading a data set of Hugging Face")
    try:
        dataset = library.load_from_disk(str(folder))
        features = dataset.features
    except Exception as error:  # of damaged files it may raise anything
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot be read as a data set: {said}", where=str(folder)) from error
    image = next((n for n, f in features.items() if isinstance(f, library.Image)), None)
    if image is None:
        raise UsageError(
            f"has no column of images, it has {', '.join(features)}", where=str(folder)
        )
    label = _label_column(features, library)
    classes = getattr(features[label], "names", None) or () if label else ()
    columns = [image, *([label] if label else [])]
    raw = dataset.select_columns(columns).cast_column(image, library.Image(decode=False))

    def item(i: int) -> Item:
        row = raw[i]
        found = None if label is None else plain_label(row[label])
        return _hf_item(f"{i}", row[image], found, folder)

    count = len(dataset)
    return Source(str(folder), lambda: map(item, range(count)), count, tuple(classes), item=item)


def _label_column(features: Mapping[str, Any], library: Any) -> str | None:
    """The column of classes: the first of the kind that is for them, else one that is called so."""
    named = (n for n, f in features.items() if isinstance(f, library.ClassLabel))
    known = (n for n in _LABELS if getattr(features.get(n), "dtype", "") in _LABEL_TYPES)
    return next(named, None) or next(known, None)


def _hf_item(number: str, image: Any, label: int | str | None, folder: Path) -> Item:
    data, path = (image or {}).get("bytes"), (image or {}).get("path")
    if data:
        return ImageItem(number, bytes(data), label)
    if path:
        return ImageItem(number, folder / path, label)
    return Unreadable(number, "holds no image")
