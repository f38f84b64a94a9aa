"""Things that the commands share: options, output, progress."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from tcompile.cli.text import echo
from tcompile.core.errors import bounded, short_names, visible
from tcompile.core.interrupt import checkpoint
from tcompile.core.progress import Progress
from tcompile.core.schedule import RESTORES

F = TypeVar("F", bound=Callable[..., Any])

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads [default: all usable cores]."
)
Shapes = tuple[tuple[str, tuple["int | str", ...]], ...]
AGAINST = click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="The dense ONNX model [default: the source, if it still is where it was].",
)


#: Seconds after which a log says again how far a stage is.
REPEAT = 60.0
#: Stages that a log has just named, which are not named again: two may take turns many times.
_NAMED = 4


@dataclass
class State:
    """The choice of -v, --debug and --quiet; one for a process.

    Attributes:
        results: where the document of --json goes while nothing else is to be printed.
    """

    verbose: bool = False
    debug: bool = False
    quiet: bool = False
    results: TextIO | None = None


def common_options(command: F) -> F:
    """Add -v, --quiet and --debug, which may stand before or after the command's name."""

    def store(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        state = ctx.ensure_object(State)
        if value and parameter.name:
            setattr(state, parameter.name, True)
        if state.quiet and state.results is None:
            ctx.call_on_close(_silenced(state))
        # Libraries below us log and warn a great deal, none of it about what was asked for.
        if state.verbose or state.debug:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        else:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)

    for flags, text in (
        (("--debug",), "Show a traceback with an error."),
        (
            ("-v", "--verbose"),
            "Say on stderr what is being done, and of a result all there is to say.",
        ),
        (("-q", "--quiet"), "Print only what is wrong; with --json, that document as well."),
    ):
        command = click.option(*flags, is_flag=True, expose_value=False, callback=store, help=text)(
            command
        )
    return command


class _Nowhere(io.StringIO):
    """Takes texts and forgets them."""

    def write(self, text: str, /) -> int:
        return len(text)


def _silenced(state: State) -> Callable[[], None]:
    """Let nothing be printed on stdout; returns what undoes it."""
    results = state.results = sys.stdout
    sys.stdout = _Nowhere()

    def undo() -> None:
        sys.stdout, state.results = results, None

    return undo


def _state() -> State:
    context = click.get_current_context(silent=True)
    found = context.find_object(State) if context else None
    return found or State()


def verbose() -> bool:
    """Tell whether everything is to be said: -v, --debug."""
    state = _state()
    return state.verbose or state.debug


def help_if_bare(context: click.Context) -> None:
    """Show the help of a group of commands that was called without any of them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if TYPE_CHECKING:
    from tcompile.artifact.manifest import Fidelity

    # Generic to type checkers from click 8.2 on; older ones cannot be subscripted when running.
    _KeepBase = click.ParamType[Fraction]
    _ShapeBase = click.ParamType[tuple[str, tuple[int | str, ...]]]
else:
    _KeepBase = _ShapeBase = click.ParamType


class ShapeParam(_ShapeBase):
    """The dims of one input, `image=batch,3,224,224`: numbers, or a name for what stays free."""

    name = "NAME=DIMS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int | str, ...]]:
        """Text to (input, dims)."""
        name, equals, text = str(value).rpartition("=")
        dims = [dim.strip() for dim in text.split(",")]
        if not name or not equals or not all(dims):
            self.fail(f"{value!r} is not NAME=DIMS, such as image=batch,3,224,224", param, ctx)
        return name, tuple(int(d) if d.lstrip("-").isdigit() else d for d in dims)


class KeepParam(_KeepBase):
    """The share of patch tokens to keep, exact: `0.6` is 3/5 and not a float near it."""

    name = "R"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fraction:
        """Text such as `0.6` or `3/5` to a fraction in (0, 1]; raises `UsageError`."""
        from tcompile.methods.composition import parse_keep

        return parse_keep(value)


def shape_option(command: F) -> F:
    """Add --shape, for models whose token count is free until an input's size is settled."""
    return click.option(
        "--shape",
        "shapes",
        type=ShapeParam(),
        multiple=True,
        help="Settle the size of an input that is free in MODEL: image=batch,3,224,224. Only the "
        "batch may stay free. May be given for several inputs.",
    )(command)


def prefix_option(command: F) -> F:
    """Add --prefix, for models whose special tokens the analysis cannot tell from patches."""
    return click.option(
        "--prefix",
        type=click.IntRange(min=0),
        metavar="N",
        help="Tokens before the patches that must stay (CLS, registers) [default: those whose "
        "value does not depend on the image].",
    )(command)


def tower_option(command: F) -> F:
    """Add --tower, for models with several encoders or passes."""
    return click.option(
        "--tower",
        metavar="NAME",
        help="The one encoder that loses tokens, of a model that has several or that runs one on "
        "several images; `tcompile inspect` names them [default: all of them do].",
    )(command)


def preprocess_option(command: F) -> F:
    """Add --preprocess, for models whose file does not say how images are prepared for them."""
    return click.option(
        "--preprocess",
        metavar="P",
        help="How images are prepared, in place of what the model records: imagenet, inception, "
        "clip, siglip, dinov2, unit (0 to 1) or raw (0 to 255), or mean=R,G,B,std=R,G,B; with "
        "size=H,W, resize=crop|squash|pad, crop=SHARE, interpolation=bicubic, layout=nchw|nhwc, as "
        "in clip,size=336.",
    )(command)


def outputs_option(command: F) -> F:
    """Add --outputs."""
    return click.option(
        "--outputs",
        type=click.Choice(["reduced", "restored"]),
        default="reduced",
        show_default=True,
        help="An output with a token axis holds the kept tokens (and the model says which they "
        "are), or is spread back over all tokens.",
    )(command)


def restore_option(command: F) -> F:
    """Add --restore."""
    return click.option(
        "--restore",
        type=click.Choice(list(RESTORES)),
        help="With --outputs restored: the row that a dropped token is given: "
        + "; ".join(f"{rule}: {words}" for rule, words in RESTORES.items())
        + " [default: what loses least on the --calibration images; else owner, or nearest where "
        "tokens are fused].",
    )(command)


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback for lines of progress, shown on stderr: a spinner for people, with the time that
    is left; a line for each stage where stderr is not a terminal; with -v every line."""
    if _state().quiet:
        yield _between_steps(lambda text: None)
    elif verbose():
        start = time.perf_counter()
        yield _between_steps(lambda text: _line(start, text))
    elif sys.stderr.isatty() and "NO_COLOR" in os.environ:
        with _one_line() as show:
            yield _between_steps(show)
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            left = _Left()
            yield _between_steps(
                lambda text: status.update(bounded(left.of(text)).replace("[", r"\["))
            )
    else:
        with _a_line_a_stage() as show:
            yield _between_steps(show)


@contextmanager
def _one_line() -> Iterator[Progress]:
    """A callback that writes over its last text, with no more than a carriage return."""
    left, length = _Left(), [0]

    def show(text: str) -> None:
        line = bounded(left.of(text))[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"\r{line.ljust(length[0])}")
        sys.stderr.flush()
        length[0] = len(line)

    try:
        yield show
    finally:
        sys.stderr.write(f"\r{' ' * length[0]}\r")


#: How far a step is, in its text.
_SHARE = re.compile(r"^(.*?)(\d+)\s?%")


class _Left:
    """Adds to the text of a step that says how far it is how long it still takes."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._step, self._start, self._first = clock, "", 0.0, 0

    def of(self, text: str) -> str:
        """The text, with the time that is left where it does not say that and it can be told."""
        found = None if " left" in text else _SHARE.match(text)
        if found is None:
            self._step = ""
            return text
        step, share, now = found[1], int(found[2]), self._clock()
        if step != self._step or share < self._first:
            self._step, self._start, self._first = step, now, share
        done = share - self._first
        if done < 3 or share >= 100:
            return text
        seconds = (now - self._start) * (100 - share) / done
        return f"{text}, about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(start: float, text: str) -> None:
    click.echo(f"[{time.perf_counter() - start:6.1f} s] {bounded(text)}", err=True)


#: How far a stage is: what follows the last colon of a text, if it is this.
_FAR = re.compile(r"(?:\w+ )?\d|.*\d (?:%|of \d)")


def _stage(text: str) -> str:
    """The stage that a text is about, without how far it is."""
    head, _, far = text.rpartition(": ")
    return head if head and _FAR.match(far) else text


@contextmanager
def _a_line_a_stage() -> Iterator[Progress]:
    """A callback that writes a line where a stage begins; every `REPEAT` seconds one that says how
    far it is, so that a log of a long job shows that it lives; and one at the end."""
    start, done = time.perf_counter(), threading.Event()
    named: deque[str] = deque(maxlen=_NAMED)
    current, left = [""], _Left()

    def show(text: str) -> None:
        current[0] = left.of(text)
        stage = _stage(text)
        if (key := re.sub(r"\d+", "#", stage)) not in named:
            named.append(key)
            _line(start, stage)

    def watch() -> None:
        while not done.wait(REPEAT):
            if current[0]:
                _line(start, current[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        done.set()
        thread.join()
    if named:
        _line(start, "done")


def _between_steps(show: Progress) -> Progress:
    """Stop there if Ctrl-C was pressed while no one listened."""

    def step(text: str) -> None:
        checkpoint()
        show(text)

    return step


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    out = _state().results or sys.stdout
    plain = (out.encoding or "").lower() not in ("utf-8", "utf8")
    click.echo(json.dumps(document, indent=2, ensure_ascii=plain, allow_nan=False), file=out)


def remark(text: str) -> None:
    """Print on stderr what is to be known beside the results; nothing with --quiet."""
    if not _state().quiet:
        echo(text, err=True)


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
