"""`tcompile demo`."""

from __future__ import annotations

import shlex
from fractions import Fraction
from pathlib import Path

import click

from tcompile.cli.common import JSON, KeepParam, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo


@click.command(short_help="Run the whole job on a small model that is included.")
@click.option(
    "--keep",
    type=KeepParam(),
    help="Share of the patch tokens to keep [default: 0.6, or what --method says itself].",
)
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="M",
    help="As in `tcompile build`; auto: solved for this CPU.",
)
@click.option(
    "--scenes",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Held-out scenes to score both models on.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new folder in which model and artifact stay.",
)
@JSON
@common_options
def demo(
    keep: Fraction | None, method: str, scenes: int, output: Path | None, as_json: bool
) -> None:
    """Do the whole job on a small trained model that comes with tcompile.

    The model finds four digits in a cluttered scene and adds them up. It is written as ONNX, built
    for the CPU with fewer tokens, and both are scored on scenes it has never seen. Needs the extra
    `cpu` and half a minute.

    \b
    Example:
      tcompile demo --keep 0.4 -o demo
    """
    from tcompile.api.demo import demo as run_demo

    with progress() as say:
        result = run_demo(keep=keep, method=method, folder=output, scenes=scenes, progress=say)
    if as_json:
        print_json(result.to_json())
        return
    for line in result.summary:
        echo(line)
    b = result.benchmark
    print_table(
        ("model", "tokens", "right sums", "median, ms"),
        [
            ("dense", result.tokens_in, f"{result.dense_top1:.1%}", f"{b.dense.median:.3g}"),
            (
                "reduced",
                f"{result.tokens_in} to {result.tokens_out}",
                f"{result.reduced_top1:.1%}",
                f"{b.reduced.median:.3g}",
            ),
        ],
        title=f"zoo:glyphs, {result.method}",
    )
    s = b.speedup
    echo(
        f"speed-up {s.ratio:.2f} [{s.lower:.2f}, {s.upper:.2f}] of reduced over dense (95 %, "
        f"{b.rounds} interleaved rounds, batch {b.batch}, {b.threads} threads)"
    )
    for note in result.notes:
        echo(f"note: {note}")
    echo(f"on {b.machine}, {b.runtime}; accuracy on {result.scenes} scenes never trained on")
    if output is not None:
        echo(f"written: {result.model} and {result.artifact}")
        echo(f"next: tcompile verify {shlex.quote(result.artifact)}")
