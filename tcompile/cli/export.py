"""`tcompile export`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table


@click.command(short_help="Write a PyTorch model as ONNX.")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The .onnx file to write; it appears only when everything went well.",
)
@click.option("--image-size", type=click.IntRange(min=1), metavar="N", help="Side in pixels.")
@click.option(
    "--batch",
    default="1",
    show_default=True,
    metavar="N|dynamic",
    help="Images per call, or `dynamic` for a free batch (the token count stays static).",
)
@click.option("--random-weights", is_flag=True, help="Download nothing; to try it offline.")
@click.option(
    "--exporter",
    type=click.Choice(["auto", "dynamo", "torchscript", "transformers"]),
    default="auto",
    show_default=True,
)
@click.option("--opset", type=int, help="ONNX opset [default: the exporter's].")
@click.option("--attention", type=click.Choice(["sdpa", "eager"]), help="Spelling of attention.")
@click.option("--no-check", is_flag=True, help="Skip the comparison with PyTorch.")
@JSON
@common_options
def export(
    source: str,
    output: Path,
    image_size: int | None,
    batch: str,
    random_weights: bool,
    exporter: str,
    opset: int | None,
    attention: str | None,
    no_check: bool,
    as_json: bool,
) -> None:
    """Write a PyTorch model as ONNX and check that the file computes the same.

    SOURCE is timm:NAME, hf:ID_OR_DIR, open_clip:ARCH, torchvision:NAME, zoo:NAME, or
    pkg.mod:callable for a function of yours that returns the model. Needs the extra `export`.

    \b
    Example:
      tcompile export timm:vit_base_patch16_224 -o vit.onnx --batch dynamic
    """
    from tcompile.models import export as export_model

    with progress() as say:
        report = export_model(
            source,
            output,
            batch=_batch(batch),
            exporter=exporter,
            opset=opset,
            attention=attention,
            image_size=image_size,
            random_weights=random_weights,
            check=not no_check,
            progress=say,
        )
    if as_json:
        print_json(report.to_json())
        return
    error = report.max_abs_error
    checked = "not checked" if error is None else f"off by {error:.1e} from PyTorch at most"
    print_table(
        ("", ""),
        [
            ("written", ", ".join(str(f) for f in report.files)),
            ("exporter", f"{report.exporter}, opset {report.opset}"),
            *(("input", f"{k} {list(v)}") for k, v in report.inputs.items()),
            *(("output", f"{k} {list(v)}") for k, v in report.outputs.items()),
            ("numerics", checked),
            *(("note", note) for note in report.notes),
        ],
    )


def _batch(text: str) -> int | str:
    if text == "dynamic" or (text.isdigit() and int(text) > 0):
        return int(text) if text.isdigit() else text
    raise click.BadParameter(f"{text!r} is neither a number nor 'dynamic'", param_hint="'--batch'")
