"""`tcompile targets`."""

from __future__ import annotations

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo


@click.command(short_help="List the devices, or show one.")
@click.argument("name", required=False)
@JSON
@common_options
def targets(name: str | None, as_json: bool) -> None:
    """List the devices tcompile compiles for, or show all figures of one.

    \b
    Example:
      tcompile targets jetson-orin
    """
    from tcompile.core.errors import UsageError
    from tcompile.targets import list_targets, load_target

    if name is not None:
        try:
            target = load_target(name)
        except UsageError as error:  # Here the name is no option.
            raise UsageError(error.what, hint=error.hint) from error
        if as_json:
            print_json(target.to_json())
            return
        echo(f"{target.name}: {target.title}")
        for note in target.notes:
            echo(f"  {note}")
        rows = [
            (figure, f"{f.value:g}", f.unit, f.confidence, f.source)
            for figure, f in target.figures.items()
        ]
        if rows:
            print_table(("figure", "value", "unit", "confidence", "source"), rows)
        return
    known = list_targets()
    if as_json:
        print_json([target.to_json() for target in known])
        return
    print_table(
        ("target", "device", "runs on", "precision", "compute capability", "also called"),
        [
            (
                t.name,
                t.title,
                t.runtime,
                t.default_precision,
                t.compute_capability,
                ", ".join((*t.aliases, *(f"{t.name}:{v}" for v in t.variants))),
            )
            for t in known
        ],
    )
