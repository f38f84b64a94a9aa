"""`tcompile plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompile.cli.common import JSON, common_options, print_json, remark
from tcompile.cli.progress import progress
from tcompile.cli.schedule_options import asked_of, precision_option, schedule_options
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.planning.solve.plan_report import PlanReport


@click.command(short_help="Show the schedule that build would follow.")
@click.argument("model", type=click.Path(path_type=Path))
@schedule_options
@precision_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a solved schedule (.png or .svg): FILE-latency, FILE-depth and FILE-front.",
)
@JSON
@common_options
def plan(
    model: Path,
    target: str,
    precision: str | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the schedule that `build` would follow, and what it takes and loses; write nothing.

    \b
    Examples:
      tcompile plan vit.onnx --target jetson-orin --latency 6
      tcompile plan vit.onnx --target cpu --keep 0.6 --json > schedule.json
      tcompile build vit.onnx --target cpu --schedule schedule.json
    """
    from tcompile.pipeline import price
    from tcompile.targets.devices import in_runtime

    if plot is not None:
        from tcompile.report.plots import check_picture

        check_picture(plot)
    with progress() as say:
        say(f"analysing {model}")
        asked = asked_of(options)
        made = price(
            model,
            target=in_runtime(target, options["runtime"]),
            precision=precision,
            progress=say,
            **asked,
        )
    if plot is not None:
        from tcompile.report.plots import draw

        for path in draw(made.planned, plot):
            remark(f"wrote {path}")
    document = made.to_json()
    if as_json:
        print_json(document)
        return
    for line in made.chosen.outcome.summary():
        echo(line)
    print_schedule(document)
    if made.planned is not None:
        print_planned(made.planned)
    else:
        for line in made.chosen.lines():
            echo(line)
    for line in made.cost.lines() if not made.schedule.dense else ():
        echo(line)
    echo(f"memory, predicted: {made.memory.words(reduced=not made.schedule.dense)}")


def print_planned(planned: PlanReport) -> None:
    """Print what a solved schedule is predicted to take and lose, the plateau of each count, and
    the plans that it was weighed against."""
    from tcompile.planning.front import front_table

    if rows := planned.rows():
        print_table(("site", "tokens before", "after", "plateau of as many tokens"), rows)
    for line in planned.lines():
        echo(line)
    if len(planned.front) > 1:
        print_table(*front_table(planned.front), title="Plans by latency and loss")


def print_schedule(document: dict[str, object]) -> None:
    """The schedule as a table: what leaves where, then the tokens that each block sees."""
    from tcompile.artifact.page import given_back

    reductions = document["reductions"]
    blocks = document["tokens_per_block"]
    assert isinstance(reductions, list)
    assert isinstance(blocks, list)
    rows = [
        (r["site"], r["score"]["name"] if r.get("score") else "", r["reducer"]["name"], r["keep"])
        for r in reductions
    ]
    echo(f"method {document['method']}")
    resized = document.get("resized")
    if rows:
        print_table(("site", "score", "reducer", "patch tokens kept"), rows)
    elif isinstance(resized, dict):
        (h, w), (rows_, columns) = resized["size"], resized["grid"]
        echo(f"The image has {h} x {w} pixels: {rows_} x {columns} patches.")
    else:
        echo("No token leaves: this is the dense model.")
    if words := given_back(document):
        echo(f"row of a dropped token: {words}")
    for note in document.get("notes") or ():  # type: ignore[attr-defined]
        echo(f"note: {note}")
    tokens = [(b["block"], b["attention"], b["mlp"]) for b in blocks]
    print_table(("block", "tokens into attention", "tokens into MLP"), tokens)
