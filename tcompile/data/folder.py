"""Images of a folder: classes by `labels.csv`, or by its subfolders."""

from __future__ import annotations

import csv
from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.data.base import ImageItem, Label, Source
from tcompile.models.images import SUFFIXES

#: The file of a folder's labels.
LABELS_FILE = "labels.csv"


def folder_source(folder: Path, *, labels: bool = True) -> Source:
    """All images within a folder, by path; what is hidden, by a name with a dot first, is left out.

    Labels are those of `labels.csv` (rows file,label; numbers or names); else, where every image
    lies in a subfolder and there are two subfolders at least, the name of that.

    Args:
        labels: whether they are wanted; else `labels.csv` is not read.

    Raises:
        UsageError: there are no images, or `labels.csv` is damaged.
    """
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = sorted(p for p in found if not _hidden(p.relative_to(folder)))
    if not files:
        raise UsageError("no images in this folder", where=str(folder))
    names = [path.relative_to(folder) for path in files]
    known: list[Label | None] = [None] * len(files)
    file = folder / LABELS_FILE if labels and (folder / LABELS_FILE).exists() else None
    if file is not None:
        given = read_labels(file)
        known = [given.get(name.as_posix()) for name in names]
    elif labels and all(len(n.parts) > 1 for n in names) and len({n.parts[0] for n in names}) > 1:
        known = [name.parts[0] for name in names]

    def item(i: int) -> ImageItem:
        return ImageItem(names[i].as_posix(), files[i], known[i])

    classes = sorted({label for label in known if isinstance(label, str)})
    count, labels_file = len(files), str(file or "")
    return Source(
        str(folder), lambda: map(item, range(count)), count, tuple(classes), labels_file, item
    )


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def read_labels(path: Path) -> dict[str, Label]:
    """File → its class, of rows file,label; numbers where all labels are whole numbers. A row with
    an empty label counts as none.

    Raises:
        UsageError: it is not such a file.
    """
    refusal = UsageError("rows must be file,label, with whole numbers or names", where=str(path))
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if len(row) > 1]
    except csv.Error as error:
        raise refusal from error
    if not rows:
        raise refusal
    pairs = [(Path(row[0]).as_posix(), row[1].strip()) for row in rows]
    pairs = [pair for pair in pairs if pair[1] and pair != ("file", "label")]
    return dict(zip((name for name, _ in pairs), as_labels([x for _, x in pairs]), strict=True))


def as_labels(texts: list[str]) -> list[Label]:
    """Numbers if all of the texts are whole numbers, else the texts."""
    try:
        return [int(text) for text in texts]
    except ValueError:
        return list(texts)
