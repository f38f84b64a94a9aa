"""`tcompile plugins`."""

from __future__ import annotations

from pathlib import Path

import click

from tcompile.cli.common import JSON, common_options, help_if_bare, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo


@click.group(
    short_help="The token ops as TensorRT plugins: list, build, check.",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@common_options
@click.pass_context
def plugins(context: click.Context) -> None:
    """The token ops as TensorRT plugins.

    \b
    Examples:
      tcompile plugins list
      tcompile plugins build                              for this machine's GPU
      tcompile plugins build --arch 87 -o plugins         for Jetson Orin
      tcompile plugins check plugins/libtcompile_plugins.so
    """
    help_if_bare(context)


@plugins.command("list", short_help="Every op with its version and fields.")
@JSON
@common_options
def list_ops(as_json: bool) -> None:
    """List the token ops: what a plugin of that name takes, gives, and has for fields."""
    from tcompile.plugins.ops import OPS
    from tcompile.plugins.spec import PLUGIN_NAMESPACE, PLUGIN_VERSION

    if as_json:
        print_json([op.to_json() for op in OPS])
        return
    rows = [
        (
            op.name,
            PLUGIN_VERSION,
            PLUGIN_NAMESPACE,
            ", ".join(op.fields),
            ", ".join(t.name for t in op.takes),
            ", ".join(t.name for t in op.gives),
        )
        for op in OPS
    ]
    print_table(("op", "version", "namespace", "fields", "takes", "gives"), rows)
    echo("docs/token-ops.md says what each does.")


@plugins.command(short_help="Build the plugin library.")
@click.option(
    "--arch",
    default="native",
    show_default=True,
    metavar="A",
    help="GPU architecture: 87 or 8.7 (Jetson Orin), 110 (Thor), several as 87,110, or native.",
)
@click.option(
    "--tensorrt",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where TensorRT is unpacked [default: TENSORRT_ROOT, then where its packages install].",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for the library [default: the user's cache, where `build` looks for it].",
)
@JSON
@common_options
def build(arch: str, tensorrt: Path | None, output: Path | None, as_json: bool) -> None:
    """Build the plugin library from its sources; prints where it is.

    Needs nvcc, CMake 3.24 or newer, and TensorRT's headers.
    """
    from tcompile.plugins.build import build_library

    with progress() as say:
        _print_place(build_library(output, arch, tensorrt, say), as_json)


def _print_place(library: Path, as_json: bool) -> None:
    if as_json:
        print_json({"library": str(library)})
    else:
        echo(str(library))


@plugins.command(short_help="Check a plugin library before anything loads it.")
@click.argument("library", type=click.Path(path_type=Path))
@JSON
@common_options
def check(library: Path, as_json: bool) -> None:
    """Check that LIBRARY is that of tcompile, for this machine, and holds every op of this version.

    Nothing in it is run. Exit code 1 where something is wrong.
    """
    from tcompile.core.errors import VerificationError
    from tcompile.plugins.check import check_library

    report = check_library(library)
    if as_json:
        print_json(report.to_json())
    else:
        echo(report.text())
    if report.problems:
        raise VerificationError(report.problems[0], where=str(library))


@plugins.command(short_help="Print where the built library is.")
@JSON
@common_options
def path(as_json: bool) -> None:
    """Print where the built library is; exit code 2 if there is none."""
    from tcompile.plugins.build import built_library

    _print_place(built_library(), as_json)
