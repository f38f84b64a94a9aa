"""`tcompile verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcompile.cli.common import AGAINST, JSON, common_options, preprocess_option, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_fidelity, print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.api.verify import Layer


@click.command(short_help="Check an artifact, and its distance from the dense model.")
@click.argument("artifact", type=click.Path(path_type=Path))
@AGAINST
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A folder of images, .npy or .npz, or another form that `tcompile evaluate` takes "
    "[default: procedural scenes].",
)
@preprocess_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="The number of scenes [default: as many as the build had].",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For the scenes."
)
@click.option(
    "--layers",
    is_flag=True,
    help="Also a table of where the model leaves the reduced fp32 graph, layer by layer.",
)
@click.option(
    "--print-polygraphy", is_flag=True, help="Print the lines of polygraphy.sh, and check nothing."
)
@JSON
@common_options
def verify(
    artifact: Path,
    against: Path | None,
    data: Path | None,
    preprocess: str | None,
    samples: int | None,
    seed: int,
    layers: bool,
    print_polygraphy: bool,
    as_json: bool,
) -> None:
    """Check what was built (files, numerics, fused attention), and compare it with the dense model.

    Numerics asks whether the model computes what the reduced graph says, with the same tokens;
    fidelity what the reduction itself changed. An int8 model rounds too much for the first: it is
    judged by what it keeps of the fidelity that its graph has in fp32. A check that does not hold
    ends in exit code 1.

    \b
    Examples:
      tcompile verify vit-cpu --data photos/
      tcompile verify vit-rtx-4090 --layers
    """
    if print_polygraphy:
        _print_polygraphy(artifact, against, as_json)
        return
    from tcompile.api.verify import verify as verify_artifact

    with progress() as say:
        found = verify_artifact(
            artifact,
            against=against,
            data=data,
            preprocess=preprocess,
            samples=samples,
            seed=seed,
            layers=layers,
            progress=say,
        )
    if as_json:
        print_json(found.to_json())
    else:
        if found.layers:
            _print_layers(found.layers)
        print_table(("check", "result", ""), [(c.name, c.outcome, c.detail) for c in found.checks])
        if found.fidelity:
            print_fidelity(found.fidelity)
        for note in found.notes:
            echo(f"note: {note}")
    found.require()


def _print_polygraphy(artifact: Path, against: Path | None, as_json: bool) -> None:
    from tcompile.api.polygraphy import polygraphy_lines

    found = polygraphy_lines(artifact, against)
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines:
        click.echo(line)  # whole, for a shell


def _print_layers(layers: Sequence[Layer]) -> None:
    rows = [
        (
            row.layer,
            row.node,
            f"{row.largest:.3g}",
            f"{row.relative:.1e}",
            f"{row.cosine:.5f}",
            str(row.not_finite or "none"),
            "departs" if row.departs else "",
        )
        for row in layers
    ]
    head = ("layer", "node", "max, fp32", "max difference", "cosine", "NaN/Inf", "")
    print_table(head, rows, title="The model against the reduced fp32 graph, worst sample")
