"""`tcompile inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, Shapes, common_options, print_json, progress, shape_option


@click.command(short_help="Show the transformer in a model, and where tokens may leave.")
@click.argument("model", type=click.Path(path_type=Path))
@shape_option
@JSON
@common_options
def inspect(model: Path, shapes: Shapes, as_json: bool) -> None:
    """Show the transformer in MODEL: blocks, tokens, attention, and where tokens may leave.

    Tokens may leave at a site: `attn:3` lies between attention and MLP of block 3, `block:3` after
    its MLP, `output` after the last block. A site that is not legal comes with the reason.

    \b
    Example:
      tcompile inspect vit.onnx
    """
    from tcompile.pipeline import inspect as inspect_model

    with progress() as say:
        say(f"analysing {model}")
        found = inspect_model(model, shapes=dict(shapes))
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.to_text())
