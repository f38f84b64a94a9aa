"""From what a person named to the source of samples that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.core.errors import UsageError
from tcompile.core.files import regular_file
from tcompile.data import video
from tcompile.data.arrays import arrays_source, file_source
from tcompile.data.base import ImageItem, Source
from tcompile.data.dataset import callable_source, dataset_source, hf_source, is_hf_folder
from tcompile.data.folder import folder_source
from tcompile.data.listed import LISTS, list_source
from tcompile.data.script import script_source
from tcompile.models.images import SUFFIXES

#: What data may be, for messages.
FORMS = (
    "an image, a folder of images, a list of them (.txt, .csv), .npy or .npz, a data set of "
    "Hugging Face on disk, MODULE:CALLABLE, a loader script (.py) or a video"
)
_CALLABLE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
_SCRIPT = re.compile(r"(?P<path>.+\.py):(?P<function>\w+)")


def open_source(data: Any, *, labels: bool = True, every: int = 1) -> Source:
    """The source that data is: see `FORMS`; or a data set, an iterable or {input name: array} of a
    program. Scripts and callables are executed; everything else is read as data alone.

    Args:
        labels: whether classes are wanted; else a folder's `labels.csv` is not read.
        every: of a video, the distance between two frames.

    Raises:
        UsageError: there is nothing, it is of another kind, or it is damaged.
        MissingExtraError: a package that reads it is not installed.
    """
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in data.items()}
        return arrays_source("the arrays given", arrays)
    if not isinstance(data, (str, Path)):
        return dataset_source(data, f"the {type(data).__name__} given")
    path, text = Path(data), str(data)
    if path.is_dir():
        return hf_source(path) if is_hf_folder(path) else folder_source(path, labels=labels)
    if not path.exists():
        if script := _SCRIPT.fullmatch(text):
            return script_source(Path(script["path"]), script["function"])
        if _CALLABLE.fullmatch(text):
            return callable_source(text)
    path = regular_file(path, hint=FORMS)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return _one_image(path)
    if path.suffix in (".npy", ".npz"):
        return file_source(path)
    if suffix == ".py":
        return script_source(path)
    if suffix in LISTS:
        return list_source(path)
    if suffix in video.SUFFIXES:
        return video.video_source(path, every)
    raise UsageError("unknown kind of data", where=text, hint=FORMS)


def _one_image(path: Path) -> Source:
    def items() -> Iterator[ImageItem]:
        yield ImageItem(path.name, path)

    return Source(str(path), items, 1)
