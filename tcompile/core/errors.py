"""The errors people see: what went wrong, where, and what to do about it.

Exit codes: 2 when the person can fix it (arguments, input file, missing extra), 1 when the fault is
tcompile's or a check failed.
"""

from __future__ import annotations

import re
from typing import NoReturn

#: Characters of a line at most, and of a word in it: names in a file may have any length.
_LINE, _WORD = 1200, 300
_LONG = re.compile(rf"\S{{{_WORD + 1},}}")


def bounded(text: str) -> str:
    """Return a text as one line that a terminal can show, the middle of it left out where it is too
    long: the beginning says the place, the end what to do."""
    return _shortened(" ".join(short_names(text).split()), _LINE)


def short_names(text: str) -> str:
    """Return a text of any number of lines, the middle of every very long word left out."""
    return _LONG.sub(lambda found: _shortened(found[0], _WORD), text)


def _shortened(text: str, most: int) -> str:
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2) :]}"
    return visible(text)


def visible(text: str) -> str:
    """Return a text whose control characters are spelled out, but for the ends of lines: names of
    files may hold what moves a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class TcompileError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: one sentence, what is wrong.
        where: file, node or option it is about; may be empty.
        hint: what to do; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = bounded(what), where, bounded(hint)
        super().__init__(self.one_line())

    def one_line(self) -> str:
        """`where: what (hint)`, on a single line."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text} ({self.hint})" if self.hint else text
        return bounded(text)


class UsageError(TcompileError):
    """An argument or option that cannot be honoured."""

    exit_code = 2


class ModelError(TcompileError):
    """A model file that cannot be read, or that holds nothing that can be reduced."""

    exit_code = 2


class MissingExtraError(TcompileError):
    """An optional dependency is needed and not installed."""

    exit_code = 2

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs '{module}', which is not installed",
            hint=f"pip install 'tcompile[{extra}]'",
        )


class BrokenPackageError(MissingExtraError):
    """An optional dependency is needed, is installed, and cannot be imported."""

    def __init__(self, module: str, extra: str, purpose: str, error: Exception) -> None:
        super().__init__(module, extra, purpose)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.what = f"{purpose} needs '{module}', which is installed and cannot be loaded: {reason}"
        self.hint = f"pip install --force-reinstall {module}, and see `tcompile doctor`"
        self.args = (self.one_line(),)


class VerificationError(TcompileError):
    """A check of what was built did not hold."""


class FailedBuildError(VerificationError):
    """A model that was built and does not compute what the reduced graph does."""


class InternalError(TcompileError):
    """A state that should be impossible: a bug in tcompile."""


def assert_never(value: NoReturn) -> NoReturn:
    """The last case of a `match` over a closed set: mypy fails where a member has no case.

    `typing.assert_never`, which Python 3.10 does not have.
    """
    raise InternalError(f"{type(value).__name__} has no case here")
