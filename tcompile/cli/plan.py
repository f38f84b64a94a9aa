"""`tcompile plan`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click

from tcompile.cli.common import (
    JSON,
    Shapes,
    common_options,
    outputs_option,
    prefix_option,
    print_json,
    print_table,
    progress,
    schedule_options,
    shape_option,
)


@click.command(short_help="Show the schedule that build would follow.")
@click.argument("model", type=click.Path(path_type=Path))
@schedule_options
@outputs_option
@shape_option
@prefix_option
@JSON
@common_options
def plan(
    model: Path,
    target: str,
    keep: Fraction | None,
    method: str,
    schedule: Path | None,
    calibration: Path | None,
    outputs: str,
    shapes: Shapes,
    prefix: int | None,
    as_json: bool,
) -> None:
    """Show the schedule that `build` would follow and what the method adds; write nothing.

    \b
    Example:
      tcompile plan vit.onnx --target cpu --keep 0.6 --json > schedule.json
      tcompile build vit.onnx --target cpu --schedule schedule.json
    """
    from tcompile.pipeline import price

    with progress() as say:
        say(f"analysing {model}")
        made = price(
            model,
            target=target,
            keep=keep,
            method=method,
            schedule=schedule,
            calibration=calibration,
            outputs=outputs,
            shapes=dict(shapes),
            prefix=prefix,
        )
    document = made.to_json()
    if as_json:
        print_json(document)
    else:
        print_schedule(document)
        for line in made.cost.lines() if made.schedule.reductions else ():
            click.echo(line)


def print_schedule(document: dict[str, object]) -> None:
    """The schedule as a table: what leaves where, then the tokens that each block sees."""
    reductions = document["reductions"]
    blocks = document["tokens_per_block"]
    assert isinstance(reductions, list)
    assert isinstance(blocks, list)
    rows = [
        (r["site"], r["score"]["name"] if r.get("score") else "", r["reducer"]["name"], r["keep"])
        for r in reductions
    ]
    click.echo(f"method {document['method']}")
    if rows:
        print_table(("site", "score", "reducer", "patch tokens kept"), rows)
    else:
        click.echo("No token leaves: this is the dense model.")
    for note in document.get("notes") or ():  # type: ignore[attr-defined]
        click.echo(f"note: {note}")
    tokens = [(b["block"], b["attention"], b["mlp"]) for b in blocks]
    print_table(("block", "tokens into attention", "tokens into MLP"), tokens)
