"""`tcompile maps`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import AGAINST, JSON, common_options, preprocess_option, print_json, remark
from tcompile.cli.progress import progress
from tcompile.cli.text import echo


@click.command(short_help="Draw what became of the tokens of images.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="An image, a folder of images, .npy or .npz [default: a few procedural scenes].",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A new or an empty folder for the pictures.",
)
@AGAINST
@preprocess_option
@JSON
@common_options
def maps(
    artifact: Path,
    data: Path | None,
    output: Path,
    against: Path | None,
    preprocess: str | None,
    as_json: bool,
) -> None:
    """Draw a map over each image after each step of an artifact's schedule, as PNG.

    Dropped patches are dark and hatched; those that were merged have one colour, an outline and,
    where they lie in several places, a number. maps.json lists the pictures with the map of each.
    Where the dense model is gone, there is the last map alone, if an output of the artifact says
    which tokens its rows are.

    \b
    Example:
      tcompile maps vit-cpu --data images/ -o maps
    """
    from tcompile.api.maps import maps as draw

    with progress() as say:
        found = draw(artifact, output, data, against=against, preprocess=preprocess, progress=say)
    if as_json:
        print_json(found.to_json())
        return
    for note in found.notes:
        remark(f"note: {note}")
    images = len({picture.image for picture in found.pictures})
    echo(
        f"{_counted(len(found.pictures), 'map')} of {_counted(images, 'image')} ({found.data}): "
        f"{found.directory}"
    )


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
