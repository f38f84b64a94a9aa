"""`tcompile init-app`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.text import echo
from tcompile.core.errors import UsageError


@click.command("init-app", short_help="Write a program, or files of a server, for an artifact.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--cpp", "language", flag_value="cpp", help="A C++17 program, built by CMake.")
@click.option("--python", "language", flag_value="python", help="A Python program.")
@click.option("--triton", "language", flag_value="triton", help="A model repository of Triton.")
@click.option(
    "--deepstream",
    "language",
    flag_value="deepstream",
    help="A configuration of DeepStream's nvinfer, of an artifact for a Jetson.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A new or an empty folder for the project.",
)
@JSON
@common_options
def init_app(artifact: Path, language: str | None, output: Path, as_json: bool) -> None:
    """Write a program that runs an artifact on images and prints the best classes.

    A project of its own: the program, a copy of the artifact, and the header that checks and runs
    it. It prepares images as the artifact records, and refuses an artifact with other outputs.
    For a server, in place of a program, what it reads, made from the manifest.

    \b
    Examples:
      tcompile init-app vit-cpu --cpp -o app
      tcompile init-app vit-cpu --triton -o served
    """
    if language is None:
        raise UsageError(
            "what to write is not said",
            where="init-app",
            hint="--cpp, --python, --triton or --deepstream",
        )
    from tcompile.deploy.app import init_app as write

    app = write(artifact, output, language)
    if as_json:
        print_json(app.to_json())
        return
    echo(f"written: {app.directory}")
    echo("in it:")
    for command in app.commands:
        click.echo(f"  {command}")  # whole, for a shell
