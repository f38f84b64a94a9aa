"""Text for terminals: lines are broken between words alone, so that every name can be copied."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import click

from tcompile.core.errors import visible

#: Stands for a hyphen while click breaks lines, which it does after hyphens: `--max-` is no option.
_HYPHEN = "\u2011"


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a text on stdout, or stderr; on a terminal no word of it is broken. Control characters
    are spelled out."""
    text = visible(text)
    if (sys.stderr if err else sys.stdout).isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    click.echo(text, err=err)


def wrapped(text: str, width: int) -> str:
    """Return a text with its long lines broken between words, what follows set in by two."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line,
            max(width, 20),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


class _Formatter(click.HelpFormatter):
    """Help in which options are whole."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **options: Any) -> None:
        super().write_dl([(t, x.replace("-", _HYPHEN)) for t, x in rows], *args, **options)

    def getvalue(self) -> str:
        text = super().getvalue().replace(_HYPHEN, "-")
        return wrapped(text, shutil.get_terminal_size().columns)  # examples


class _Context(click.Context):
    formatter_class = _Formatter


def keep_words_whole(command: click.Command) -> None:
    """Break no option in the help of a command and of those within it."""
    command.context_class = _Context
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        keep_words_whole(each)
