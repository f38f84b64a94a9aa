"""What an evaluation says: measures, classes, worst images. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What an output is for, which says by what it is measured.
Task = Literal["classes", "embedding", "features", "label map", "boxes", "number"]


@dataclass(frozen=True)
class Measure:
    """One figure of the dense and of the reduced model on the same images.

    Attributes:
        name: as `--fail-under` knows it.
        dense: None for what compares the two models, such as `agreement`, and where there is no
            dense model.
        reduced: of the reduced model, or of the comparison.
        difference: reduced − dense; None where there is no `dense`.
        low, high: 95 % interval of the difference, else of the figure; None of a single image.
        interval: how it was found: `agresti-min`, `wilson`, `bootstrap`, `jackknife`; empty: there
            is none.
        images: that it rests on.
        p_value: McNemar's exact, of a share of right answers: that so many change by chance alone.
        higher_is_better: of errors it is not.
    """

    name: str
    dense: float | None
    reduced: float
    difference: float | None
    low: float | None
    high: float | None
    interval: str
    images: int
    p_value: float | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class ClassRow:
    """What becomes of the images of one class.

    Attributes:
        number: of the class; label: its name, where the model's file has one.
        images: of this class; without labels, those that the dense model takes for it.
        measure: what dense and reduced are: `top1`, `iou`, `knn`.
        dense, reduced: None without labels; dense also where there is no dense model.
        agreement: share of the images (or pixels) to which both give the same class.
    """

    number: int
    label: str
    images: int
    measure: str
    dense: float | None
    reduced: float | None
    agreement: float | None


@dataclass(frozen=True)
class Damage:
    """An image that the reduction changed much, and by what that shows.

    Attributes:
        id: of the image, within the data.
        measure: what dense and reduced are, such as `probability of cat`.
        dense, reduced: of the two models.
        label: the right class, where it is known; answers: what the two models say.
    """

    id: str
    measure: str
    dense: float
    reduced: float
    label: str = ""
    answers: tuple[str, str] | None = None


@dataclass(frozen=True)
class OutputFindings:
    """Everything about one output.

    Attributes:
        compared: `all`, `restored tokens` or `kept tokens`: over which tokens.
        classes: the most damaged first.
        worst: the most damaged first, as many as were asked for.
        remarks: a sentence each.
        not_finite: images of which the reduced model has NaN or Inf where the dense model has not,
            so that figures leave them out; no bound holds then.
    """

    output: str
    task: Task
    compared: str
    measures: tuple[Measure, ...]
    classes: tuple[ClassRow, ...] = ()
    worst: tuple[Damage, ...] = ()
    remarks: tuple[str, ...] = ()
    not_finite: int = 0


@dataclass(frozen=True)
class Overlap:
    """How far the sets of kept tokens agree, image by image.

    Attributes:
        between: what with the artifact: another artifact, another runtime, `the next frame`.
        mean, least: of the images; 1: the same tokens.
        images: or pairs of frames.
    """

    between: str
    mean: float
    least: float
    images: int


@dataclass(frozen=True)
class Gate:
    """A bound that was asked for, and whether it holds; `not_finite` as in `OutputFindings`."""

    measure: str
    output: str
    kind: Literal["under", "drop"]
    bound: float
    found: float
    passed: bool
    not_finite: int = 0
