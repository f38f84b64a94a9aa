"""`tcompile methods`."""

from __future__ import annotations

import click

from tcompile.cli.common import JSON, common_options, print_json, print_table


@click.command(short_help="List the token-reduction methods.")
@JSON
@common_options
def methods(as_json: bool) -> None:
    """List the token-reduction methods and their parameters.

    \b
    Example:
      tcompile build vit.onnx --target cpu --method tome:r=13
    """
    from tcompile.planning import list_methods

    known = list_methods()
    if as_json:
        print_json([method.to_json() for method in known])
        return
    rows = [(m.name, m.summary, ", ".join(m.parameters), m.paper) for m in known]
    print_table(("method", "what it does", "parameters", "paper"), rows)
