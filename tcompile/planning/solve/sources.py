"""Where the planner's losses come from: images, their attention, or a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.progress import Progress
from tcompile.methods.method import Method
from tcompile.planning.optimise import prior_loss
from tcompile.planning.solve.candidates import Losses

if TYPE_CHECKING:
    from tcompile.planning.losses import Calibration
    from tcompile.planning.request import Request

#: Shares of the patches that single steps are measured at; between them losses are interpolated.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Sites that are measured at most, evenly spread, the first and the last among them; the others lie
#: between them in depth.
SITES = 8
#: Where losses come from that nothing was measured for.
PRIOR = "a documented prior, not a measurement"


@dataclass(frozen=True)
class Images:
    """Calibration data, cut in two.

    Attributes:
        fit: what sensitivities are measured on.
        check: what a drop is checked on.
    """

    fit: Calibration
    check: Calibration


def images_for(source: str, request: Request) -> Images:
    """The calibration images of a request.

    Half are to plan with, at most `request.images`; all others are to check on.

    Raises:
        UsageError: they cannot be read, or are fewer than two.
    """
    from tcompile.planning.losses import read_calibration, split

    assert request.calibration is not None
    data = read_calibration(source, request.calibration, seed=request.seed)
    fit, check = split(data, request.seed)
    if len(fit) > request.images:
        rows = np.arange(request.images)
        fit = fit.rows(
            rows, f"{request.images} of {data.source} to plan with (seed {request.seed})"
        )
    return Images(fit, check)


def prior_of(method: Method) -> Losses:
    """What is lost when there are no images to tell."""
    shape = method.context.shape
    step = prior_loss(
        method.preset.family, tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks
    )
    return Losses(step, f"{PRIOR} (no --calibration)", False)


def losses_on(
    graph: gs.Graph, source: str, request: Request, images: Images, say: Progress
) -> Callable[[Method, Sequence[int]], Losses]:
    """What gives the losses of methods on images; measured once, then cached."""
    from tcompile.planning.losses import (
        attention_losses,
        cached_losses,
        losses_key,
        measured_losses,
    )

    measure = {"measured": measured_losses, "attention": attention_losses}[request.losses]
    kind = "calibrated" if request.losses == "measured" else "attention"

    def losses(method: Method, counts: Sequence[int]) -> Losses:
        shape = method.context.shape
        spread = np.linspace(0, len(method.sites) - 1, min(SITES, len(method.sites)))
        sites = [method.sites[i].name for i in sorted({round(x) for x in spread})]
        few = [shape.prefix + max(round(s * shape.patches), 1) for s in SHARES]
        shapes = {k: list(map(str, v)) for k, v in (request.shapes or {}).items()}
        bound = {"prefix": request.prefix, "tower": request.tower, "shapes": shapes}
        key = losses_key(
            source,
            method.text,
            images.fit,
            sites,
            few,
            kind=kind,
            outputs=request.outputs,
            seed=request.seed,
            bound=bound,
        )
        found = cached_losses(
            key,
            lambda: measure(
                graph,
                method.analysis,
                method.preset,
                method.values,
                sites,
                few,
                images.fit.samples,
                outputs=request.outputs,
                seed=request.seed,
                progress=lambda text: say(f"{method.preset.name}: {text}"),
            ),
        )
        words = f"{found.unit}, {found.kind} on {found.images} images ({found.source})"
        return Losses(found.step(), words, kind == "calibrated")

    return losses
