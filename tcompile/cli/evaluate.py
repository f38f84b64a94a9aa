"""`tcompile evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompile.cli.common import AGAINST, JSON, common_options, preprocess_option, print_json
from tcompile.cli.progress import progress
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.evaluation.findings import ClassRow, Measure, OutputFindings
    from tcompile.evaluation.result import Evaluation

    _BoundBase = click.ParamType[tuple[str, float]]
else:
    _BoundBase = click.ParamType

#: Classes, images and unreadable files that a page shows; --json has all.
_SHOWN = 5


class BoundParam(_BoundBase):
    """A measure and a number, `top1=.75`."""

    name = "MEASURE=X"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Text to (measure, bound)."""
        name, _, text = str(value).partition("=")
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not name or not -1e9 < number < 1e9:
            self.fail(f"{value!r} is not MEASURE=X, such as top1=.75", param, ctx)
        return name, number


@click.command(short_help="The task's own measure on your data, dense and reduced.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="A folder of images (class subfolders, or labels.csv), a list (.txt, .csv), .npy or .npz, "
    "a data set that Hugging Face's `datasets` saved, MODULE:CALLABLE (a data set as "
    "torchvision's), a loader script (.py, as polygraphy's) or a video. Scripts and callables are "
    "executed.",
)
@AGAINST
@preprocess_option
@click.option(
    "--runtime",
    metavar="R",
    help="What runs the artifact: onnxruntime, openvino, tensorrt-rtx or tensorrt [default: that "
    "of its target].",
)
@click.option(
    "--no-labels",
    is_flag=True,
    help="Use no labels of the data: of a folder whose subfolders are not classes.",
)
@click.option("--only", metavar="NAME", help="The one output to look at [default: all].")
@click.option(
    "--task",
    type=click.Choice(["classes", "embedding", "features"]),
    help="What an output is for [default: by its name and shape].",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Zero-shot: embeddings of a text for each class, [classes, D] in .npy, or in .npz as "
    "`embeddings`, with `classes`, their names.",
)
@click.option(
    "--label-maps",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Segmentation: NAME.png for each image, a class number a pixel; 255 does not count.",
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Detection: the true boxes, as COCO has them; of models like DETR and YOLOS.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="R|ARTIFACT",
    help="Another runtime, or another artifact (of another precision), with whose kept tokens this "
    "one's are compared. May be given several times.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Look at so many samples at most, equally far apart; of arrays, scripts and videos the "
    "first ones.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of a video: one frame in so many.",
)
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="The number of images to list that lose most.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap."
)
@click.option(
    "--fail-under",
    type=BoundParam(),
    multiple=True,
    help="End with exit code 1 if the reduced model has less than X of a measure. May be given "
    "several times.",
)
@click.option(
    "--fail-drop",
    type=BoundParam(),
    multiple=True,
    help="The same if it loses more than X of it against the dense model.",
)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write the result as JSON too.",
)
@JSON
@common_options
def evaluate(
    artifact: Path, data: str, no_labels: bool, file: Path | None, as_json: bool, **options: Any
) -> None:
    """Run an artifact and the dense model on data, and print what the task is measured by.

    Classes: top1, top5, agreement; with --texts zeroshot1, zeroshot5. Embeddings: cosine,
    neighbours, own, and with labels knn, recall1, map. Features and maps: correlation, cosine,
    error, error_p95; with --label-maps miou, pixel; with --boxes ap, ap50, ap75. Each with an
    interval of 95 % over images, paired where both models have the figure; what becomes of each
    class; the images that lose most; how far kept tokens agree with those of other runs and of the
    next frame of a video. Where the dense model is gone, figures are those of the artifact alone.

    \b
    Examples:
      tcompile evaluate vit-cpu --data photos/ --fail-under agreement=.95
      tcompile evaluate vit-cpu --data val/ --fail-drop top1=.01 -o vit.json
    """
    from tcompile.api.evaluate import evaluate as evaluate_artifact
    from tcompile.api.evaluate import write_evaluation
    from tcompile.core.files import output_file

    if file is not None:
        output_file(file)  # before minutes are spent
    with progress() as say:
        found = evaluate_artifact(artifact, data, labels=not no_labels, progress=say, **options)
    if file is not None:
        write_evaluation(found, file)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    found.require()


def _print(found: Evaluation) -> None:
    labels = f", {found.labelled} with labels" if found.labelled else ", without labels"
    against = "" if found.dense is None else f" against {found.dense}"
    echo(
        f"{found.artifact} ({found.runtime}, {found.precision})"
        f"{against}, {found.images:,} images of {found.data}{labels}\n"
    )
    for output in found.outputs:
        _print_output(output)
    if found.overlaps:
        rows = [(o.between, f"{o.mean:.4f}", f"{o.least:.4f}", o.images) for o in found.overlaps]
        print_table(("with", "mean", "least", "images"), rows, title="Kept tokens in common")
    if found.gates:
        gates = [
            (
                g.measure,
                g.output,
                f"{g.found:.4f}",
                ("at least ", "at most ")[g.kind == "drop"] + f"{g.bound:g}",
                "passed" if g.passed else "failed",
            )
            for g in found.gates
        ]
        print_table(("bound", "output", "found", "asked", ""), gates)
    if found.unreadable:
        echo(f"{len(found.unreadable)} could not be read:")
        for item in found.unreadable[:_SHOWN]:
            echo(f"  {item.id}: {item.fault}")
    for note in found.notes:
        echo(f"note: {note}")
    echo("Intervals are of 95 %, over images (docs/evaluate.md); --json has everything.")


def _print_output(output: OutputFindings) -> None:
    over = "" if output.compared == "all" else f", over {output.compared}"
    head = ("measure", "dense", "reduced", "difference", "95 % interval", "p", "images")
    rows = [_row(measure) for measure in output.measures]
    title = f"{output.output}: {output.task}{over}"
    if rows:
        print_table(head, rows, title=title)
    else:
        echo(title)
    lose = [row for row in output.classes if _loses(row)]
    if lose:
        classes = lose[:_SHOWN]
        labelled = classes[0].dense is not None
        columns = (f"{classes[0].measure} dense", "reduced") if labelled else ()
        shown = [
            (
                row.label or row.number,
                row.images,
                *((_number(row.dense, ".3f"), _number(row.reduced, ".3f")) if labelled else ()),
                _number(row.agreement, ".3f"),
            )
            for row in classes
        ]
        title = f"Classes that lose most, {len(shown)} of {len(output.classes)}"
        print_table(("class", "images", *columns, "agreement"), shown, title=title)
    if output.worst:
        images = [
            (
                d.id,
                d.measure,
                f"{d.dense:.4f}",
                f"{d.reduced:.4f}",
                " → ".join(d.answers) if d.answers and d.answers[0] != d.answers[1] else "",
            )
            for d in output.worst[:_SHOWN]
        ]
        names = ("image", "by", "dense", "reduced", "answer")
        print_table(names, images, title="Images that lose most")
    for remark in output.remarks:
        echo(f"note: {remark}")


def _loses(row: ClassRow) -> bool:
    fewer = row.dense is not None and row.reduced is not None and row.dense > row.reduced
    return fewer or (row.agreement is not None and row.agreement < 1)


def _number(value: float | None, form: str = ".4f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _row(measure: Measure) -> tuple[str, ...]:
    sign = "" if measure.difference is None else "+"
    interval = ""
    if measure.low is not None and measure.high is not None:
        interval = f"{measure.low:{sign}.4f} to {measure.high:{sign}.4f}"
    return (
        measure.name,
        _number(measure.dense),
        _number(measure.reduced),
        _number(measure.difference, "+.4f"),
        interval,
        _number(measure.p_value, ".3g"),
        str(measure.images),
    )
