"""`tcompile profile`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompile.cli.common import (
    JSON,
    THREADS,
    Shapes,
    common_options,
    outputs_option,
    prefix_option,
    print_json,
    remark,
    shape_option,
    tower_option,
)
from tcompile.cli.progress import progress
from tcompile.cli.schedule_options import runtime_option
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo
from tcompile.core.errors import UsageError
from tcompile.methods.portfolio import PORTFOLIO

if TYPE_CHECKING:
    from tcompile.api.profile import Profiled

#: Rows of the table for people.
_ROWS = 13
#: Below that many ms a step was taken to cost nothing.
_FREE = 1e-5


@click.command(short_help="Latency against token count on a device.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="T", help="The device; see `tcompile targets`.")
@runtime_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the profile there, for `tcompile build --profile FILE`.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="PICTURE",
    help="Draw latency against tokens: .png or .svg.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="M",
    help="A method whose steps are measured; may be given several times [default: "
    f"{', '.join(PORTFOLIO[:-1])} and {PORTFOLIO[-1]}, where the model has room for them].",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Images in a run, where the model leaves it free.",
)
@THREADS
@click.option(
    "--precision",
    metavar="P",
    help="fp32, fp16, or int8: measured on a CPU, with --modelled on a GPU; bf16: in OpenVINO "
    "[default: the target's].",
)
@click.option(
    "--modelled", is_flag=True, help="Do not measure: compute latency from the device's data sheet."
)
@click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="FILE",
    help="What was measured elsewhere, instead of measuring: measured.json of a --kit; a CSV of "
    "tokens,ms[,lower,upper]; or N=FILE for each count N, written by trtexec "
    "(--exportTimes or --exportProfile); and M=FILE, a CSV of before,after,ms for the "
    "steps of method M.",
)
@click.option(
    "--kit",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For a Jetson: write models of several token counts and a script there, instead of "
    "measuring. On the device the script measures them with trtexec, and writes measured.json "
    "for --import.",
)
@click.option(
    "--counts",
    metavar="N,N",
    help="With --kit: tokens that its models carry, prefix included [default: five, from 85 to "
    "25 % of the patch tokens].",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with another profile.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=240.0,
    show_default=True,
    help="Seconds that the whole command may take, reading the model and opening its parts "
    "included. As many token counts and steps are measured as that suffices for; two "
    "rounds over the dense model, three counts and two steps of each method are measured "
    "in any case, and what is being opened or run is not broken off.",
)
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@outputs_option
@shape_option
@prefix_option
@tower_option
@JSON
@common_options
def profile(
    model: Path,
    target: str,
    runtime: str | None,
    output: Path | None,
    plot: Path | None,
    methods: tuple[str, ...],
    batch: int,
    threads: int | None,
    precision: str | None,
    modelled: bool,
    imports: tuple[str, ...],
    kit: Path | None,
    counts: str | None,
    against: Path | None,
    seconds: float,
    fresh: bool,
    outputs: str,
    shapes: Shapes,
    prefix: int | None,
    tower: str | None,
    as_json: bool,
) -> None:
    """Measure what the parts of MODEL take on a device, by token count.

    On a device that is not at hand they are modelled from its data sheet. What was measured is
    kept, and `plan` and `build` find it.

    \b
    Example:
      tcompile profile vit.onnx --target cpu --plot vit.svg
      tcompile profile vit.onnx --target jetson-orin -o orin.json
      tcompile profile vit.onnx --target jetson-orin --kit kit
      tcompile profile vit.onnx --target jetson-orin --import kit/measured.json -o orin.json
      tcompile profile vit.onnx --target t4 --import 197=a.json --import 99=b.json -o t4.json
    """
    begun = time.monotonic()  # What is imported here takes its time, too.
    from tcompile.api.profile import check_output, draw_profile, write_profile
    from tcompile.api.profile import profile as make
    from tcompile.report.plots import check_picture
    from tcompile.targets.devices import in_runtime

    if kit is not None:
        _write_kit(
            model,
            kit,
            {"--modelled": modelled, "--import": imports, "--against": against, "-o": output},
            target=in_runtime(target, runtime),
            methods=methods,
            counts=_counts(counts),
            batch=batch,
            precision=precision,
            outputs=outputs,
            shapes=dict(shapes),
            prefix=prefix,
            tower=tower,
            as_json=as_json,
        )
        return
    if counts is not None:
        raise UsageError("is for --kit", where="--counts", hint="add --kit DIR, or omit it")
    if output is not None:
        check_output(output)
    if plot is not None:
        check_picture(plot)
    with progress() as say:
        made = make(
            model,
            target=in_runtime(target, runtime),
            methods=methods,
            batch=batch,
            threads=threads,
            precision=precision,
            modelled=modelled,
            imports=imports,
            against=against,
            seconds=max(seconds - (time.monotonic() - begun), 0.0),
            fresh=fresh,
            outputs=outputs,
            shapes=dict(shapes),
            prefix=prefix,
            tower=tower,
            progress=say,
        )
    for note in made.notes:
        remark(f"tcompile: note: {note}")
    written = [write_profile(made, output)] if output is not None else []
    if plot is not None:
        written.append(draw_profile(made, plot))
    if as_json:
        print_json(made.to_json())
        return
    print_profile(made)
    for path in written:
        echo(f"wrote {path}")


def _counts(text: str | None) -> tuple[int, ...]:
    """Token counts as people write them."""
    try:
        return tuple(int(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise UsageError(
            f"'{text}' is not a list of numbers", where="--counts", hint="--counts 197,148,99"
        ) from None


def _write_kit(
    model: Path, kit: Path, others: Mapping[str, object], *, as_json: bool, **options: Any
) -> None:
    """Write a kit and say what to do with it."""
    from tcompile.api.kit import make_kit

    given = [name for name, value in others.items() if value]
    if given:
        raise UsageError(f"and {given[0]} are not for one command", where="--kit")
    with progress() as say:
        made, notes = make_kit(model, kit, progress=say, **options)
    for note in notes:
        remark(f"tcompile: note: {note}")
    if as_json:
        print_json(made.to_json())
    else:
        echo(made.words)


def print_profile(made: Profiled) -> None:
    """Latency of the whole model at some counts, of the methods' steps, and where it is from."""
    from tcompile.artifact.page import milliseconds

    found = made.totals
    at = {n: i for i, n in enumerate(found.counts)}
    dense = float(found.ms[-1])
    stride = max(1, -(-len(found.known) // _ROWS))
    shown = found.known[::-1][::stride][::-1]
    if 0 < len(found.plateaus) <= _ROWS:
        shown = tuple(p.last for p in found.plateaus)
    rows = []
    for n in shown:
        ms = float(found.ms[at[n]])
        share = f"{100 * ms / dense:.1f} %" if dense else ""
        edges = [f"{p.first} to {p.last}" for p in found.plateaus if p.first <= n <= p.last]
        rows.append((str(n), milliseconds(ms), share, *edges))
    heads = ("tokens throughout", "latency", "of dense", "plateau")
    print_table(heads if found.plateaus else heads[:3], rows)
    if made.profile.why_no_plateaus:
        echo(f"no plateaus are claimed: {made.profile.why_no_plateaus}")
    last = found.counts[-1]
    costs = {k: float(c.at(last, last - last // 4)) for k, c in made.profile.reducers.items()}
    timed = {k for k, c in made.profile.reducers.items() if any(f.runs for *_, f in c.points)}
    steps = [
        (k, milliseconds(ms) if ms > _FREE or k in timed else "not measured")
        for k, ms in costs.items()
    ]
    print_table(("one step of", "from all tokens to three quarters"), steps)
    echo(made.profile.words)
    if made.profile.conditions.note:
        echo(f"note: {made.profile.conditions.note}")
    for line in made.against.lines() if made.against is not None else ():
        echo(line)
