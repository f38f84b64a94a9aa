"""A list of images: a file with one path a line, perhaps with its class."""

from __future__ import annotations

import csv
from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.data.base import ImageItem, Label, Source
from tcompile.data.folder import as_labels

#: What separates path and label, by suffix.
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "", ".lst": ""}
LISTS = frozenset(_SEPARATORS)


def list_source(path: Path) -> Source:
    """The images that a list names, in its order; paths are relative to the list's folder.

    `.csv` and `.tsv` have rows file,label, the label may be left out, and so may a first row
    `file,label`. In `.txt` and `.lst` a class number may follow the path, after a space or a tab.
    A file that is not there is one that cannot be read: it is counted like any other.

    Raises:
        UsageError: it names nothing, or has labels for some of the images alone.
    """
    text, separator = read_text(path), _SEPARATORS[path.suffix.lower()]
    try:
        rows = _rows(text, separator) if separator else [_words(r) for r in text.splitlines()]
    except csv.Error as error:
        raise UsageError("rows must be file,label", where=str(path)) from error
    rows = [row for row in rows if row[0] and row != ("file", "label") and row != ("file", "")]
    if not rows:
        raise UsageError("names no images", where=str(path))
    bare = next((name for name, label in rows if not label), None)
    if bare is not None and any(label for _, label in rows):
        raise UsageError(
            f"has no label for {bare}, and has labels for others",
            where=str(path),
            hint="all, or none",
        )
    labels: list[Label] | list[None] = (
        [None] * len(rows) if bare is not None else as_labels([label for _, label in rows])
    )

    def item(i: int) -> ImageItem:
        name = rows[i][0]
        return ImageItem(name, path.parent / name, labels[i])

    classes = sorted({label for label in labels if isinstance(label, str)})
    count = len(rows)
    return Source(str(path), lambda: map(item, range(count)), count, tuple(classes), item=item)


def _rows(text: str, separator: str) -> list[tuple[str, str]]:
    read = csv.reader(text.splitlines(), delimiter=separator)
    return [(row[0].strip(), row[1].strip() if len(row) > 1 else "") for row in read if row]


def _words(line: str) -> tuple[str, str]:
    """Path and class number; a path may have spaces, and a number behind it is its class."""
    line = line.strip()
    name, _, last = line.rpartition("\t" if "\t" in line else " ")
    return (name.strip(), last) if name and last.isdigit() else (line, "")
