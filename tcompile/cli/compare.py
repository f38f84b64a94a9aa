"""`tcompile compare`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo


@click.command(short_help="Put builds of one model side by side.")
@click.argument("artifacts", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    metavar="D",
    help="Name the fastest that loses no more, in the unit of the table.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Name the one that loses least within so many milliseconds.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write it as a page, with a plot of speed against loss.",
)
@JSON
@common_options
def compare(
    artifacts: tuple[Path, ...],
    max_loss: float | None,
    latency: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Put builds of one model side by side, by their manifests: what each takes and loses, which no
    other beats, and which to take. Nothing is run.

    \b
    Example:
      tcompile compare vit-cpu vit-int8 vit-tome -o compare.html
    """
    from tcompile.api.compare import compare as compare_builds
    from tcompile.api.compare import page_of, table_of
    from tcompile.core.files import output_file, write_file

    place = None if output is None else output_file(output)
    with progress() as say:
        say(f"reading {len(artifacts)} manifests")
        found = compare_builds(artifacts, max_loss=max_loss, latency=latency)
    if place is not None:
        write_file(place, page_of(found))
    if as_json:
        print_json({**found.to_json(), "page": None if place is None else str(place)})
        return
    head, rows = table_of(found)
    print_table(head, rows)
    echo(f"loss: {found.figure}")
    for note in found.notes:
        echo(f"note: {note}")
    for line in found.take:
        echo(line)
    if place is not None:
        echo(f"written: {place}")
