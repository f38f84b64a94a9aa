"""`tcompile view`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, print_json, remark
from tcompile.cli.text import echo


@click.command(short_help="Open the report of an artifact.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--serve",
    is_flag=True,
    help="Serve it on this machine's own address until Ctrl-C, such as for a browser behind SSH.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="With --serve: the port [default: any that is free].",
)
@click.option("--no-open", is_flag=True, help="Only say where it is; open no browser.")
@JSON
@common_options
def view(artifact: Path, serve: bool, port: int, no_open: bool, as_json: bool) -> None:
    """Open the report of an artifact in a browser.

    It is one file, DIR/report.html, and asks nothing of a network. An artifact that has none gets
    one from its manifest, without images.

    \b
    Example:
      tcompile view vit-cpu
    """
    from tcompile.api.view import open_in_browser
    from tcompile.api.view import serve as serve_page
    from tcompile.api.view import view as find

    found = find(artifact)
    for note in found.notes:
        remark(f"note: {note}")

    def ready(address: str) -> None:
        opened = not no_open and open_in_browser(address)
        if as_json:
            print_json({"report": str(found.page), "address": address, "opened": opened})
        else:
            echo(f"{address} (Ctrl-C ends it)")

    if serve:
        serve_page(found.page, port, ready)
        return
    opened = not no_open and open_in_browser(found.page.resolve().as_uri())
    if as_json:
        print_json({"report": str(found.page), "address": None, "opened": opened})
        return
    echo(str(found.page))
    if not opened and not no_open:
        remark("no browser was found here; open that file, or see --serve")
