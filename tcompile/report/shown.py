"""What a report shows of a build beside its manifest: some images, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tcompile.report.token_maps import MapStep

Array = npt.NDArray[Any]
#: Where in the order of loss the images lie that are shown, and what they are called.
_SHOWN = ((0.0, "worst"), (0.25, "worse than 3 of 4"), (0.5, "typical"), (1.0, "best"))


@dataclass(frozen=True)
class Seen:
    """What the dense and the reduced model made of some of the samples that fidelity is shown on.

    Attributes:
        output: that loses most; samples are ranked by it.
        figure: what a loss is: `1 - cosine`, `1 - correlation` or `relative error`.
        losses: of every sample, [B].
        rows: the samples that are shown, worst first.
        ranks: what each of them is: `worst`, `typical`, …
        names: of these samples.
        dense, reduced: outputs of these samples, by name.
    """

    output: str
    figure: str
    losses: Array
    rows: tuple[int, ...]
    ranks: tuple[str, ...]
    names: tuple[str, ...]
    dense: Mapping[str, Array]
    reduced: Mapping[str, Array]


def chosen_rows(losses: Array) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which samples are shown, and what they are called: the worst, a typical one, the best.

    Args:
        losses: [B]; NaN where there is none, which counts as nothing lost.
    """
    order = np.argsort(-np.nan_to_num(losses), kind="stable")
    rows: dict[int, str] = {}
    for share, name in _SHOWN:
        rows.setdefault(int(order[round(share * (len(order) - 1))]), name)
    return tuple(rows), tuple(rows.values())


@dataclass(frozen=True)
class Shown:
    """What the page of a build shows beside its manifest.

    Attributes:
        seen: outputs of some samples; None where no output can be compared.
        pictures: [H, W, 3] uint8 of each of these, or None where it is no image.
        steps: their tokens after each step of the schedule; none where there is no map.
        grid: of the patches, where there are maps.
        why: why there are no maps; empty where there are.
        command: that made the artifact, as it is typed.
        labels: the name of each class; empty where the model's file has none.
    """

    seen: Seen | None = None
    pictures: tuple[Array | None, ...] = ()
    steps: tuple[MapStep, ...] = ()
    grid: tuple[int, int] = (0, 0)
    why: str = ""
    command: str = ""
    labels: tuple[str, ...] = ()


#: No images.
NOTHING_SHOWN = Shown()
