"""`tcompile inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tcompile.report.explain import NodeFacts
    from tcompile.report.inspection_page import Inspection

from tcompile.cli.common import (
    JSON,
    Shapes,
    common_options,
    prefix_option,
    print_json,
    shape_option,
    tower_option,
)
from tcompile.cli.progress import progress
from tcompile.cli.text import echo


@click.command(short_help="Show the transformer in a model, and where tokens may leave.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--why",
    "node",
    metavar="NODE",
    help="Show instead all that is known about one node: axes, block, and what happens there when "
    "tokens leave. By its name, by that of a tensor that it gives, or by a site: attn:3 is the "
    "attention of block 3.",
)
@shape_option
@prefix_option
@tower_option
@JSON
@common_options
def inspect(
    model: Path,
    node: str | None,
    shapes: Shapes,
    prefix: int | None,
    tower: str | None,
    as_json: bool,
) -> None:
    """Show the transformer in MODEL: tokens, blocks, side inputs, and where tokens may leave.

    Tokens may leave at a site: `attn:3` lies between attention and MLP of block 3, `block:3` after
    its MLP, `output` after the last block; at `around:3` they pass by block 3. A site that is not
    legal comes with the reason.

    \b
    Examples:
      tcompile inspect vit.onnx
      tcompile inspect vit.onnx --why attn:3
    """
    from tcompile import pipeline

    found: Inspection | NodeFacts
    with progress() as say:
        say(f"analysing {model}")
        if node is None:
            found = pipeline.inspect(model, shapes=dict(shapes), prefix=prefix, tower=tower)
        else:
            found = pipeline.explain(model, node, shapes=dict(shapes), prefix=prefix, tower=tower)
    if as_json:
        print_json(found.to_json())
    else:
        echo(found.to_text())
