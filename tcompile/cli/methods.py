"""`tcompile methods`."""

from __future__ import annotations

import click

from tcompile.cli.common import JSON, common_options, print_json


@click.command(short_help="List the token-reduction methods.")
@JSON
@common_options
def methods(as_json: bool) -> None:
    """List the token-reduction methods and their parameters.

    \b
    Example:
      tcompile build vit.onnx --target cpu --method tome:r=13
    """
    from tcompile.planning.methods import METHODS

    if as_json:
        print_json([method.to_json() for method in METHODS])
        return
    for method in METHODS:
        click.echo(f"{method.name}: {method.summary}")
        click.echo(f"  {method.formula}")
        click.echo(f"  {method.reference}")
        for name, one in method.parameters.items():
            shown = "" if one.default is None else f" [default: {one.default}]"
            budget = "; sets the budget without --keep" if name in method.budget else ""
            click.echo(f"    {name}: {one.meaning}{shown}{budget}")
