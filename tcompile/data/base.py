"""What a source of data gives, one after another: images, arrays, or what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tcompile.core.arrays import StoredArray
from tcompile.core.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

Array: TypeAlias = npt.NDArray[Any]
#: A class number, or the name of a class.
Label: TypeAlias = "int | str"


@dataclass(frozen=True, eq=False)
class ImageItem:
    """One image, not yet prepared for a model.

    Attributes:
        id: by which a person finds it again: its path within the source, or its number.
        image: a file, its bytes, or what pillow has opened.
        label: its class, where the source knows it.
        clip: the video that it is a frame of; empty: it is none.
        label_fault: why what the source has for a class is none; empty: it is one, or there is
            nothing.
    """

    id: str
    image: Path | bytes | Image.Image
    label: Label | None = None
    clip: str = ""
    label_fault: str = ""


@dataclass(frozen=True, eq=False)
class ArrayItem:
    """Samples as the model takes them.

    Attributes:
        arrays: by input name, samples first; those of files are read when rows are asked for.
        labels: a class number each, or None.
        label_fault: as of images.
    """

    arrays: Mapping[str, Array | StoredArray]
    labels: Array | None = None
    label_fault: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read, and why."""

    id: str
    fault: str


Item: TypeAlias = "ImageItem | ArrayItem | Unreadable"


@dataclass(frozen=True, eq=False)
class Source:
    """Where samples come from. Nothing is read before `items` is called.

    Attributes:
        name: for messages; of a file or folder, its path.
        items: begins a new pass over the samples.
        count: how many there are; None: not known before they were read.
        classes: names of the classes, where the source has them: those of labels that are numbers,
            in that order, or all names that labels are.
        labels_file: which must have a label for every image that is read; empty: there is none.
        item: the sample of a number below `count`, where any of them can be had alone.
    """

    name: str
    items: Callable[[], Iterator[Item]]
    count: int | None = None
    classes: tuple[str, ...] = ()
    labels_file: str = ""
    item: Callable[[int], Item] | None = None

    def spread(self, most: int) -> Source:
        """So many samples, equally far apart: of data that is sorted by class, some of each.

        The same source where it has no more, or where they come one after another alone: then the
        first ones count.
        """
        item, count = self.item, self.count
        if item is None or count is None or count <= most:
            return self
        return replace(
            self,
            items=lambda: map(item, (i * count // most for i in range(most))),
            count=most,
            item=None,
        )

    def without_labels(self) -> Source:
        """The same samples, without their classes."""
        return replace(self.through(_unlabelled), classes=(), labels_file="")

    def through(self, change: Callable[[Item], Item]) -> Source:
        """The same samples, each as a function gives it back."""
        item = self.item
        return replace(
            self,
            items=lambda: map(change, self.items()),
            item=None if item is None else lambda i: change(item(i)),
        )

    def check_label(self, item: ImageItem) -> None:
        """Raise UsageError for an image that its file of labels does not name."""
        if self.labels_file and item.label is None:
            raise UsageError(
                f"has no label for {item.id}",
                where=self.labels_file,
                hint="a row file,label for every image of the folder",
            )


def _unlabelled(item: Item) -> Item:
    if isinstance(item, ImageItem):
        return replace(item, label=None, label_fault="")
    return replace(item, labels=None, label_fault="") if isinstance(item, ArrayItem) else item


def plain_label(value: Any) -> Label | None:
    """A label of a data set as a number or a name; None where it is neither.

    Numbers in tensors and arrays of one value are taken out of them.
    """
    if hasattr(value, "item") and np.size(np.asarray(value)) == 1:  # a tensor's size is a method
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return value
