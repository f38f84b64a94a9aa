"""Things that the commands share: options, and what -v, --quiet and --json do to output."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from tcompile.cli.text import echo
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


def quiet() -> bool:
    """Whether -q was given: nothing but results and errors."""
    return _state().quiet


def help_if_bare(context: click.Context) -> None:
    """Show the help of a group of commands that was called without any of them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if TYPE_CHECKING:
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


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    out = _state().results or sys.stdout
    plain = (out.encoding or "").lower() not in ("utf-8", "utf8")
    click.echo(json.dumps(document, indent=2, ensure_ascii=plain, allow_nan=False), file=out)


def remark(text: str) -> None:
    """Print on stderr what is to be known beside the results; nothing with --quiet."""
    if not quiet():
        echo(text, err=True)
