"""Tables on stdout, in which no word is broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from tcompile.cli.text import echo
from tcompile.core.errors import short_names, visible

if TYPE_CHECKING:
    from tcompile.artifact.manifest import Fidelity


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on stdout. Columns whose every cell is a number are set flush right.

    No word is broken: where a terminal is too narrow for that, each row becomes a few lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    texts = [
        ["" if cell is None else short_names(visible(str(cell))) for cell in row] for row in rows
    ]
    # Piped output is for other programs: never cut to the width of a terminal that is not there.
    # Bold letters are no colour to rich: NO_COLOR takes them as well.
    console = Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else 160,
        color_system=None if "NO_COLOR" in os.environ else "auto",
    )
    widths = _widths(head, texts, console.width)
    if widths is None:
        echo("\n".join([*filter(None, [title]), *_records(head, texts), ""]))
        return
    named = any(head)
    table = Table(
        box=box.SIMPLE_HEAD if named else None, show_header=named, pad_edge=False, show_edge=False
    )
    for i, (name, width) in enumerate(zip(head, widths, strict=True)):
        numbers = bool(texts) and all(_is_number(row[i]) for row in texts)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", width=width)
    for row in texts:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    if title:
        echo(title)
    # These fit; what makes letters bold would count as letters.
    click.echo("\n".join([*filter(None, lines), ""]))


def print_fidelity(fidelity: Fidelity) -> None:
    """Print the figures of every output, what they rest on, and what to know of them."""
    from tcompile.artifact.page import fidelity_notes, fidelity_table

    head, rows = fidelity_table(fidelity)
    print_table(head, rows, title=f"Fidelity to the dense model, {fidelity.data}")
    for note in fidelity_notes(fidelity):
        echo(f"note: {note}")


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths of the columns of a table, none narrower than its longest word; None: no room."""
    columns = [[name, *(row[i] for row in rows)] for i, name in enumerate(head)]
    whole = [max(map(len, column)) for column in columns]
    least = [max((len(word) for text in c for word in text.split()), default=0) for c in columns]
    least[0] = whole[0]  # A name of two words stays on one line.
    room = width - (3 if any(head) else 2) * (len(head) - 1)  # as rich sets columns apart
    if sum(whole) <= room:
        return whole
    spare = room - sum(least)
    if spare < 0:
        return None
    wanted = [most - few for most, few in zip(whole, least, strict=True)]
    return [few + spare * more // sum(wanted) for few, more in zip(least, wanted, strict=True)]


def _records(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows of a table, each as its first cell and a line for every other one that says
    something."""
    for first, *rest in rows:
        yield first
        for name, cell in zip(head[1:], rest, strict=True):
            if cell:
                yield f"  {name}: {cell}" if name else f"  {cell}"


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit() or (text[0] in "+-~" and text[1:2].isdigit())
