"""`tcompile run`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, preprocess_option, print_json, remark
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo
from tcompile.core.errors import short_names


@click.command(short_help="Run an artifact, or any ONNX model, on one input.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="An image, .npy for the first input, or .npz with an array for each input, by its name.",
)
@preprocess_option
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="The number of classes to show.",
)
@JSON
@common_options
def run(artifact: Path, data: Path, preprocess: str | None, top: int, as_json: bool) -> None:
    """Run an artifact, or any ONNX model, on one input and print what comes out.

    An image is prepared as the model's own metadata says (`tcompile export` and
    `build --preprocess` write that) or as --preprocess does: upright by EXIF, 16 bits scaled,
    transparent pixels on white. NaN and Inf are refused.

    \b
    Example:
      tcompile run vit-cpu --input cat.png
    """
    from tcompile.api.run import run as run_model

    with progress() as say:
        say(f"running {artifact}")
        result = run_model(artifact, data, top=top, preprocess=preprocess)
    if as_json:
        print_json(result.to_json())
        return
    for note in result.notes:
        remark(f"note: {note}")
    for out in result.outputs:
        shape = " × ".join(map(str, out.shape))
        stats = f"min {out.minimum:.4g}, mean {out.mean:.4g}, max {out.maximum:.4g}"
        stats += f", {out.not_finite} NaN or Inf" if out.not_finite else ""
        stats += f"; its tokens are those of {out.token_index}" if out.token_index else ""
        echo(f"{short_names(out.name)}: {out.dtype} {shape}, {stats}")
        for number, ranked in enumerate(out.top):
            title = f"sample {number}" if len(out.top) > 1 else ""
            rows = [(c.index, c.label, f"{c.probability:.1%}", f"{c.logit:.3f}") for c in ranked]
            print_table(("class", "label", "softmax", "logit"), rows, title=title)
