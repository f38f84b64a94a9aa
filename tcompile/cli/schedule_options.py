"""The options that say how many tokens leave where, and for which device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompile.cli.common import (
    F,
    KeepParam,
    outputs_option,
    prefix_option,
    preprocess_option,
    restore_option,
    shape_option,
    tower_option,
)

if TYPE_CHECKING:
    from tcompile.planning.request import Asked

precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "mixed", "int8", "fp8", "auto"]),
    help="mixed is for GPUs: fp16, but fp32 where values leave its range on images (--calibration, "
    "or procedural scenes). int8: products of activations and weights; on a GPU also attention "
    "that has an int8 kernel, by explicit Q/DQ, the rest mixed; on cpu by ONNX Runtime's "
    "quantizer, dynamic or static by what is measured, compared with the dense model in int8. fp8 "
    "is for GPUs of compute capability 8.9 and newer, bf16 for those of 8.0 and newer and for cpu "
    "in OpenVINO. auto, for cpu: tokens and precision weighed together against --latency or "
    "--max-drop [default: the target's; fp16 on GPUs, fp32 on CPUs].",
)

#: Gives the command the name of the target in that runtime.
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino"]),
    help="What runs the model on --target cpu; with openvino it is planned, measured and checked "
    "there, the same as --target cpu-openvino [default: the target's; onnxruntime].",
)

_OPTIONS = (
    click.option(
        "--target", required=True, metavar="T", help="The device; see `tcompile targets`."
    ),
    runtime_option,
    click.option(
        "--keep",
        type=KeepParam(),
        help="Share of the patch tokens kept to the end, in (0, 1]: at least ceil(R x patch "
        "tokens), exact on the decimal you typed; more, by a tenth at most, only where they are "
        "free on a plateau of the target. Prefix tokens (CLS, registers) always stay. 1 gives back "
        "the dense model.",
    ),
    click.option(
        "--exact",
        is_flag=True,
        help="With --keep: exactly ceil(R x patch tokens), even where more are free.",
    ),
    click.option(
        "--latency",
        type=float,
        metavar="MS",
        help="Milliseconds that a batch may take on the target: lose the least within them.",
    ),
    click.option(
        "--max-drop",
        type=float,
        metavar="D",
        help="The most that may be lost on the --calibration images, such as 0.01: top-1 accuracy "
        "where they have labels, else agreement with the dense model, else 1 - cosine or "
        "correlation. The fastest "
        "model that is shown to stay within it on images that nothing was planned with.",
    ),
    click.option(
        "--method",
        default="auto",
        show_default=True,
        metavar="M",
        help="What happens to tokens; see `tcompile methods`. auto: solved for the device, by "
        "whichever methods lose least on images, several in one schedule if need be. With --keep "
        "a method follows its own published schedule; with --latency, --max-drop or --objective "
        "its sites and counts are solved; "
        "with its own parameters (evit:rate=0.7, tome:r=13) it needs no --keep.",
    ),
    click.option(
        "--objective",
        type=click.Choice(["loss", "pomt"]),
        help="What is solved for: the least loss within the budgets [default]; or pomt, the count "
        "of most utility (latency and accuracy weighed alike), at one early site.",
    ),
    click.option(
        "--schedule",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A schedule as `tcompile plan --json` prints it (JSON, or YAML), perhaps edited, in "
        "place of all budgets and the method.",
    ),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="DATA",
        help="Your own images, to see on them what is lost: a folder (labels.csv beside them: "
        "file,label), .npz of the model's inputs (and labels), your own loader.py, which "
        "defines load_data() and is executed, or another form that `tcompile evaluate` takes; "
        "none: no images, but a prior [default: procedural scenes]. Also for methods that learn "
        "their counts (fitprune, …).",
    ),
    preprocess_option,
    click.option(
        "--losses",
        type=click.Choice(["measured", "attention"]),
        default="measured",
        show_default=True,
        help="What is looked at on the images: the model's outputs, or, cheaper, how much "
        "attention the tokens that leave would have been paid.",
    ),
    click.option(
        "--images",
        type=click.IntRange(min=1),
        help="Images that schedules are compared on at most; all others check --max-drop "
        "[default: 32, 24 or 12, by the level].",
    ),
    click.option(
        "--calibration-level",
        type=click.Choice(["coarse", "medium", "fine"]),
        help="How many schedules are run on how many images [default: by the FLOPs of the model, "
        "the same on every machine].",
    ),
    click.option(
        "--profile",
        metavar="P",
        help="Latencies to plan with: a file of `tcompile profile`, measure, or model (from the "
        "device's data sheet) [default: measured before; else measured on a CPU where there is a "
        "budget of latency or drop, or in int8; else modelled].",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Images in a run, to plan and measure with, where the model leaves it free.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads [default: all usable cores]."
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of which images are planned with, and of all else that is drawn.",
    ),
    outputs_option,
    restore_option,
    click.option(
        "--resize",
        type=click.Choice(["graph", "host"]),
        default="graph",
        show_default=True,
        help="With --method resolution: the input keeps its size and is resized in the graph, or "
        "is the smaller image, which your code makes.",
    ),
    shape_option,
    prefix_option,
    tower_option,
)


def schedule_options(command: F) -> F:
    """Add them all."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_of(options: dict[str, Any]) -> Asked:
    """The options as the API takes them; `target` and `runtime` are its own."""
    asked: Any = {k: v for k, v in options.items() if k not in ("target", "runtime")}
    asked["shapes"] = dict(asked["shapes"])
    return asked  # type: ignore[no-any-return]
