"""`tcompile verify`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import AGAINST, JSON, common_options, print_json, print_table, progress


@click.command(short_help="Check an artifact, and its distance from the dense model.")
@click.argument("artifact", type=click.Path(path_type=Path))
@AGAINST
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A folder of images, or .npy or .npz [default: random inputs].",
)
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True,
              help="How many random inputs.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="For the random inputs.")
@JSON
@common_options
def verify(
    artifact: Path,
    against: Path | None,
    data: Path | None,
    samples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Check what was built (files, numerics, fused attention), and compare it with the dense model.

    Numerics asks whether the model computes what the reduced graph says, with the same tokens;
    fidelity what the reduction itself changed. A check that does not hold ends in exit code 1.

    \b
    Example:
      tcompile verify vit-cpu --data photos/
    """
    from tcompile.verify import verify as verify_artifact

    with progress() as say:
        found = verify_artifact(
            artifact, against=against, data=data, samples=samples, seed=seed, progress=say
        )
    if as_json:
        print_json(found.to_json())
    else:
        print_table(("check", "result", ""), [(c.name, c.outcome, c.detail) for c in found.checks])
        if found.fidelity:
            _print_fidelity(found.fidelity)
    found.require()


def _print_fidelity(fidelity: object) -> None:
    from tcompile.manifest import Fidelity

    assert isinstance(fidelity, Fidelity)
    rows = [
        (
            o.output,
            o.compared,
            f"{o.cosine_mean:.5f}",
            f"{o.cosine_min:.5f}",
            "" if o.top1_agreement is None else f"{o.top1_agreement:.1%}",
        )
        for o in fidelity.outputs
    ]
    head = ("output", "compared on", "cosine", "worst", "top-1 the same")
    print_table(head, rows, title=f"Fidelity to the dense model, {fidelity.data}")
