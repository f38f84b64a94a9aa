"""Images of a folder: classes by `labels.csv`, or by its subfolders."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.data.base import ImageItem, Label, Source
from tcompile.models.images import SUFFIXES

#: The file of a folder's labels.
LABELS_FILE = "labels.csv"
_ROWS = "rows must be file,label, with whole numbers or names"


def folder_source(folder: Path, *, labels: bool = True) -> Source:
    """All images within a folder, by path; links are followed, and what is hidden, by a name with a
    dot first, is left out.

    Labels are those of `labels.csv` (rows file,label; numbers or names); else, where every image
    lies in a subfolder and there are two subfolders at least, the name of that.

    Args:
        labels: whether they are wanted; else `labels.csv` is not read.

    Raises:
        UsageError: there are no images, or `labels.csv` is damaged or names none of them.
    """
    files = sorted(_images(folder))
    if not files:
        raise UsageError(
            "no images in this folder",
            where=str(folder),
            hint=f"files that end in {', '.join(sorted(SUFFIXES))}",
        )
    names = [path.relative_to(folder) for path in files]
    known: list[Label | None] = [None] * len(files)
    file = folder / LABELS_FILE if labels and (folder / LABELS_FILE).exists() else None
    if file is not None:
        given = read_labels(file)
        known = [given.get(name.as_posix()) for name in names]
        if not any(name.as_posix() in given for name in names):
            raise UsageError(
                f"names none of the images: its first row is of '{next(iter(given), '')}', the "
                f"first image is '{names[0].as_posix()}'",
                where=str(file),
                hint="rows file,label: the path within the folder, with its suffix",
            )
    elif labels and all(len(n.parts) > 1 for n in names) and len({n.parts[0] for n in names}) > 1:
        known = [name.parts[0] for name in names]

    def item(i: int) -> ImageItem:
        return ImageItem(names[i].as_posix(), files[i], known[i])

    classes = sorted({label for label in known if isinstance(label, str)})
    count, labels_file = len(files), str(file or "")
    return Source(
        str(folder), lambda: map(item, range(count)), count, tuple(classes), labels_file, item
    )


def _images(folder: Path) -> Iterator[Path]:
    """Images in any depth, in folders that links lead to as well, each once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [n for n in folders if not n.startswith(".")]
        for name in () if real in seen else names:
            if not name.startswith(".") and is_image(name):
                yield Path(root, name)
        seen.add(real)


def read_labels(path: Path) -> dict[str, Label]:
    """File → its class, of rows file,label; numbers where all labels are whole numbers. A row with
    an empty label counts as none.

    Raises:
        UsageError: it is not such a file, or has two labels for a file.
    """
    rows = [row for row in table_rows(path, ",") if row[1] or is_image(row[0])]
    if not any(label for _, label in rows):
        raise UsageError(_ROWS, where=str(path))
    labelled = [(Path(name).as_posix(), label) for name, label in rows if label]
    found: dict[str, Label] = {}
    for (name, _), label in zip(labelled, as_labels([x for _, x in labelled]), strict=True):
        if found.setdefault(name, label) != label:
            raise UsageError(
                f"has two labels for {name}: {found[name]} and {label}", where=str(path)
            )
    return found


def table_rows(path: Path, separator: str) -> list[tuple[str, str]]:
    """Rows file, label of a table, the label empty where there is none; without a first row of
    headings, where others name images.

    Raises:
        UsageError: it is not such a file.
    """
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    if separator == "," and ";" in first and "," not in first:
        separator = ";"  # as spreadsheets write it where the comma is a decimal point
    try:
        read = [row for row in csv.reader(lines, delimiter=separator) if row and row[0].strip()]
    except csv.Error as error:
        raise UsageError(_ROWS, where=str(path)) from error
    rows = [(plain_path(row[0]), row[1].strip() if len(row) > 1 else "") for row in read]
    headed = rows and not Path(rows[0][0]).suffix and any(is_image(name) for name, _ in rows[1:])
    return rows[1:] if headed or rows[:1] in ([("file", "label")], [("file", "")]) else rows


def plain_path(text: str) -> str:
    """A path as a file gives it, of Windows too."""
    return text.strip().replace("\\", "/")


def is_image(name: str) -> bool:
    """Tell whether a file is an image, by its suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def as_labels(texts: list[str]) -> list[Label]:
    """Numbers if all of the texts are whole numbers (7, 7.0), else the texts."""
    try:
        numbers = [float(text) for text in texts]
        return (
            [int(number) for number in numbers] if all(map(float.is_integer, numbers)) else [*texts]
        )
    except ValueError:
        return list(texts)
