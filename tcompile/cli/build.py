"""`tcompile build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tcompile.cli.common import JSON, common_options, print_json
from tcompile.cli.progress import progress
from tcompile.cli.schedule_options import asked_of, precision_option, schedule_options
from tcompile.cli.summary import print_summary
from tcompile.core.errors import FailedBuildError


@click.command(short_help="Compile a model to carry fewer tokens; write an artifact.")
@click.argument("model", type=click.Path(path_type=Path))
@schedule_options
@precision_option
@click.option(
    "--token-ops",
    type=click.Choice(["native", "plugin", "aot"]),
    help="Token ops as function bodies, as our TensorRT plugins (`tcompile plugins`), or as "
    "kernels compiled ahead of time [default: the target's; native].",
)
@click.option(
    "--min-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Fewest images that an engine takes, of a model with a free batch [default: 1]. "
    "An ONNX model on a CPU runs any batch: there it is only recorded.",
)
@click.option(
    "--opt-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images that the engine is tuned for [default: --batch].",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most images that the engine takes [default: 8, or --batch].",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Memory that an engine's kernels may use while they run, in MiB [default: all there is].",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Newer versions of TensorRT run the engine too, of a Jetson; it may be slower, and holds "
    "code that runs where it is loaded. What runs what: docs/deploy.md.",
)
@click.option(
    "--exclude-lean-runtime",
    is_flag=True,
    help="With --version-compatible: leave that code (TensorRT's lean runtime) out of the engine; "
    "a newer TensorRT has to be given it as a library.",
)
@click.option(
    "--hardware-compatibility-level",
    type=click.Choice(["ampere-plus", "same-compute-capability"]),
    help="Other GPUs run the engine too: all from Ampere on, or those of the same compute "
    "capability. Of an RTX GPU; TensorRT has none on a Jetson.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The artifact's directory [default: beside MODEL, named after it and the target].",
)
@click.option(
    "--refine",
    is_flag=True,
    help="Where the target runs here: plan again from what was measured, up to twice, if it "
    "is not what was predicted. Without it, this is done only where --latency is exceeded.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Emit the reduced model even if it was measured to be no faster than dense, where "
    "otherwise the dense one is emitted; and replace an artifact even if files in it were "
    "changed. What is not an artifact is never replaced.",
)
@click.option(
    "--keep-failed",
    is_flag=True,
    help="Write the artifact of a build that failed its own checks, for debugging; its manifest "
    "and report name the fault, and the exit code is 1 all the same.",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the graph as ONNX text after every pass, DIR/NNN-STAGE-PASS.txt, without large "
    "weights; of the model that is emitted. DIR is new, empty, or of an earlier dump.",
)
@JSON
@common_options
def build(
    model: Path,
    target: str,
    precision: str | None,
    token_ops: str | None,
    min_batch: int | None,
    opt_batch: int | None,
    max_batch: int | None,
    workspace: int | None,
    version_compatible: bool,
    exclude_lean_runtime: bool,
    hardware_compatibility_level: str | None,
    output: Path | None,
    refine: bool,
    force: bool,
    keep_failed: bool,
    dump: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile MODEL to carry fewer tokens on a device, and write the artifact.

    The artifact is a directory with the reduced model, an engine where one can be built here, a
    manifest and a report. It appears when it is complete and has passed its own checks, or not at
    all. What is asked is what is built. Only where the target's runtime runs here, and the reduced
    model was measured to be no faster than dense, the artifact holds the dense one, and the first
    line says so.

    \b
    Examples:
      tcompile build vit.onnx --target cpu --keep 0.6
      tcompile build vit.onnx --target jetson-orin --latency 6
      tcompile build vit.onnx --target cpu --max-drop 0.01 --calibration images/
      tcompile build vit.onnx --target rtx-4090 --method tome:r=13 -o vit-4090
    """
    from tcompile.artifact.directory import load_artifact
    from tcompile.pipeline import build as build_artifact
    from tcompile.targets.devices import in_runtime

    with progress() as say:
        directory = build_artifact(
            model,
            target=in_runtime(target, options["runtime"]),
            precision=precision,
            token_ops=token_ops,
            min_batch=min_batch,
            opt_batch=opt_batch,
            max_batch=max_batch,
            workspace=workspace,
            version_compatible=version_compatible,
            exclude_lean_runtime=exclude_lean_runtime,
            hardware_compatibility_level=hardware_compatibility_level,
            output=output,
            force=force,
            refine=refine,
            keep_failed=keep_failed,
            dump=dump,
            progress=say,
            **asked_of(options),
        )
    manifest = load_artifact(directory).manifest
    if as_json:
        print_json(
            {
                "artifact": str(directory),
                "emitted": manifest.emitted,
                "manifest": manifest.to_json(),
            }
        )
    else:
        print_summary(directory)
    if manifest.fault:
        raise FailedBuildError(
            "this build failed its own checks, see FAILED above; it is kept for debugging only"
            if not as_json
            else manifest.fault,
            where=str(directory),
        )
