"""`tcompile doctor`."""

from __future__ import annotations

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo


@click.command(short_help="Show what is on this machine, what it enables, what is missing.")
@JSON
@common_options
def doctor(as_json: bool) -> None:
    """Show which runtimes, GPUs, compilers and optional packages are on this machine.

    Each comes with what it enables and, where it is missing, with the command that adds it.
    Nothing is changed. What is missing is not an error: the exit code is 0.

    \b
    Example:
      tcompile doctor
    """
    from tcompile.api.doctor import doctor as examine

    with progress() as say:
        say("looking at this machine")
        found = examine()
    if as_json:
        print_json(found.to_json())
        return
    echo(f"tcompile {found.tcompile}, Python {found.python}, {found.system}")
    for group in dict.fromkeys(finding.group for finding in found.findings):
        rows = [
            (f.name, f.state, f.detail, f.enables, f.remedy)
            for f in found.findings
            if f.group == group
        ]
        head = (group, "", "", "for", "to add it")
        shown = [i for i, _ in enumerate(head) if any(row[i] for row in rows)]
        print_table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])
    echo("docs/support.md says what runs on which system.")
