"""The command line: thin calls of the public API.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 our fault or a check failed,
2 yours to mend, 130 interrupted. Only click is imported before a command runs.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click

from tcompile._version import __version__
from tcompile.cli import (
    bench,
    build,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    init_app,
    inspect,
    maps,
    methods,
    plan,
    plugins,
    profile,
    run,
    targets,
    verify,
    view,
)
from tcompile.cli.common import State, common_options, help_if_bare
from tcompile.cli.exit import explain
from tcompile.cli.text import keep_words_whole
from tcompile.core.interrupt import listening

COMMANDS = (
    export.export,
    inspect.inspect,
    methods.methods,
    targets.targets,
    profile.profile,
    plan.plan,
    build.build,
    view.view,
    compare.compare,
    maps.maps,
    verify.verify,
    evaluate.evaluate,
    bench.bench,
    run.run,
    init_app.init_app,
    plugins.plugins,
    demo.demo,
    doctor.doctor,
)


class _InOrder(click.Group):
    """Lists commands in the order of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="tcompile")
@common_options
@click.pass_context
def tcompile(context: click.Context) -> None:
    """Compile vision transformers so that they carry fewer tokens.

    ONNX in, ONNX and TensorRT out, nothing retrained.

    \b
      tcompile demo                                      see it work
      tcompile export timm:vit_base_patch16_224 -o vit.onnx
      tcompile build vit.onnx --target cpu --keep 0.6    the job
    """
    help_if_bare(context)


for _command in COMMANDS:
    tcompile.add_command(_command)
keep_words_whole(tcompile)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    state, out = State(), sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A code page of Windows may lack a sign.
            stream.reconfigure(errors="replace")
    with listening():
        try:
            code = tcompile.main(
                args=None if arguments is None else list(arguments),
                prog_name="tcompile",
                standalone_mode=False,
                obj=state,
            )
            sys.stdout.flush()
        except SystemExit as stop:
            if sys.stdout is not out:  # click wraps it where no one reads on, and ends with 1
                sys.stdout = out
                return explain(BrokenPipeError(), debug=state.debug)
            code = stop.code
        except BaseException as error:  # every way out ends in one line and an exit code
            return explain(error, debug=state.debug)
    return code if isinstance(code, int) else 0
