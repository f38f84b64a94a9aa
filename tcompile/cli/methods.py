"""`tcompile methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.methods.method_page import MethodPage


@click.command(short_help="List the token-reduction methods, or explain one.")
@click.argument("name", required=False)
@JSON
@common_options
def methods(name: str | None, as_json: bool) -> None:
    """List the token-reduction methods; with NAME, what that one does, in full.

    \b
    Examples:
      tcompile methods
      tcompile methods tome
      tcompile build vit.onnx --target cpu --method tome:r=13
    """
    from tcompile.core.extensions import extensions
    from tcompile.methods.composition import find_method
    from tcompile.methods.presets import ALL, Preset

    if name is not None:
        from tcompile.methods.method_page import method_page

        found = method_page(find_method(name))
        if as_json:
            print_json(found.to_json())
        else:
            _print(found)
        return
    presets = [*ALL, *extensions("tcompile.presets", Preset, ALL)]
    if as_json:
        print_json([preset.to_json() for preset in presets])
        return
    rows = [(p.name, p.family, ", ".join([*p.required, *p.needs]), p.summary) for p in presets]
    print_table(("method", "kind", "needs", "what it does"), rows)
    echo("`tcompile methods NAME` explains one; docs/methods.md explains all.")


def _print(found: MethodPage) -> None:
    preset = found.preset
    echo(f"{preset.name}: {preset.summary}")
    echo(f"  {preset.reference}\n")
    echo(f"Formula: {preset.formula}")
    echo(f"Schedule: {preset.scheduler.words}\n")
    if found.rows:
        print_table(
            ("site", "score", "reducer", "patch tokens left"),
            [(row.sites, row.score, row.reducer, row.keep) for row in found.rows],
            f"For example, {found.example}:",
        )
    for name, parameter in preset.parameters.items():
        shown = "" if parameter.default is None else f" [default: {parameter.default}]"
        budget = "; sets the budget without --keep" if name in preset.budget else ""
        echo(f"  {name}: {parameter.meaning}{shown}{budget}")
    if preset.published:
        echo(f"Published: {preset.published}")
    echo(f"Needs: {'; '.join(found.needs) or 'nothing in particular'}")
    fused = "stays fused" if found.fused else "is not fused where the score reads it"
    echo(
        f"Attention {fused}. What it adds on a model: tcompile plan MODEL --method {preset.name} …"
    )
    if preset.note:
        echo(f"Note: {preset.note}")
