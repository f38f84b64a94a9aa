"""The message when something goes wrong: one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback

import click

from tcompile.cli.text import echo
from tcompile.core.errors import TcompileError, bounded
from tcompile.core.interrupt import received

# The machine's or the person's business, not a fault in the program.
_ENVIRONMENT = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
}


def explain(error: BaseException, *, debug: bool) -> int:
    """Print one line about the error (a traceback before it with `debug`), return the exit code."""
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    # An interrupt may surface as something else, a failed import for one.
    number = received()
    interrupted = number is not None or isinstance(error, (click.Abort, KeyboardInterrupt))
    if debug and not interrupted:
        traceback.print_exception(error)
    if interrupted:
        echo("tcompile: interrupted", err=True)
        return 128 + (number or signal.SIGINT)
    text, code = _describe(error)
    echo(f"tcompile: error: {bounded(text)}", err=True)
    return code


def _room(error: OSError) -> str:
    """What to do where there is no room for temporary files, or no folder for them."""
    name = "" if error.filename is None else os.fsdecode(error.filename)
    try:
        temporary = name.startswith(tempfile.gettempdir())
    except OSError:
        temporary = True
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or not name
    return " (set TMPDIR to a folder with more room)" if temporary and full else ""


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, TcompileError):
        return error.one_line(), error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "tcompile"
        return f"{error.format_message()} (see '{path} --help')", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        # Of no folder for temporary files at all, Python says more than the system.
        reason = os.strerror(error.errno or 0) if where or error.errno != errno.ENOENT else error
        return f"{where}{reason}{_room(error)}", 2
    if isinstance(error, MemoryError):
        return "not enough memory (a smaller batch or model may fit)", 1
    kind, what = type(error).__name__, str(error) or "no message"
    return f"this is a bug in tcompile: {kind}: {what} (please report it with --debug)", 1
