"""A list of images: a file with one path a line, perhaps with its class."""

from __future__ import annotations

from pathlib import Path

from tcompile.core.errors import UsageError
from tcompile.core.files import read_text
from tcompile.data.base import ImageItem, Label, Source
from tcompile.data.folder import as_labels, is_image, plain_path, table_rows

#: What separates path and label, by suffix.
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "", ".lst": ""}
LISTS = frozenset(_SEPARATORS)


def list_source(path: Path) -> Source:
    """The images that a list names, in its order; paths are relative to the list's folder.

    `.csv` and `.tsv` have rows file,label, the label may be left out, and so may a first row
    of headings. In `.txt` and `.lst` a class may follow the path, after a space or a tab; lines
    with a # first are left out. A file that is not there is one that cannot be read: it is counted
    like any other.

    Raises:
        UsageError: it names nothing, nothing that is there, or has labels for some images alone.
    """
    separator = _SEPARATORS[path.suffix.lower()]
    rows = table_rows(path, separator) if separator else _lines(path)
    if not rows:
        raise UsageError("names no images", where=str(path))
    bare = next((name for name, label in rows if not label), None)
    if bare is not None and any(label for _, label in rows):
        raise UsageError(
            f"has no label for {bare}, and has labels for others",
            where=str(path),
            hint="all, or none",
        )
    if not any((path.parent / name).exists() for name, _ in rows):
        raise UsageError(
            f"names no image that is there: {rows[0][0]}",
            where=str(path),
            hint=f"paths are relative to the folder of the list, {path.parent}",
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


def _lines(path: Path) -> list[tuple[str, str]]:
    lines = (line.strip() for line in read_text(path).splitlines())
    return [_words(line) for line in lines if line and not line.startswith("#")]


def _words(line: str) -> tuple[str, str]:
    """Path and class: what follows a path, which may have spaces, if it is a number, or if the path
    is that of an image without it."""
    name, _, last = line.rpartition("\t" if "\t" in line else " ")
    labelled = last.isdigit() or (is_image(name) and not is_image(last))
    return (plain_path(name), last) if name and last and labelled else (plain_path(line), "")
