"""Sources of the planner's losses: images, their attention, or a prior.

Measured losses are kept by content: measured once for a model, a method, data and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcompile._version import __version__
from tcompile.core.cache import cached
from tcompile.core.model_files import describe_source
from tcompile.core.progress import Progress
from tcompile.methods.method import Method
from tcompile.passes.stages import Analysed
from tcompile.planning.losses import (
    Calibration,
    attention_losses,
    measured_losses,
    read_calibration,
    split,
)
from tcompile.planning.losses.base import SCHEMA, SiteLosses
from tcompile.planning.optimise import prior_loss
from tcompile.planning.request import Request
from tcompile.planning.solve.method_tables import Losses

#: Shares of the patches that single steps are measured at; between them losses are interpolated.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Sites that are measured at most, evenly spread, the first and the last among them; the others lie
#: between them in depth.
SITES = 8
#: The kind of their entries in the cache.
KIND = "losses"
#: Where losses come from that nothing was measured for.
PRIOR = "a documented prior, not a measurement"


def images_for(source: str, request: Request) -> tuple[Calibration, Calibration]:
    """The calibration images of a request: those to plan with, and those to check on.

    Half are to plan with, at most `request.images`; all others are to check on.

    Raises:
        UsageError: they cannot be read, or are fewer than two.
    """
    assert request.calibration is not None
    data = read_calibration(source, request.calibration)
    fit, check = split(data, request.seed)
    if len(fit) > request.images:
        words = f"{request.images} of {data.samples.source} to plan with (seed {request.seed})"
        fit = fit.rows(np.arange(request.images), words)
    return fit, check


def prior_of(method: Method, words: str = f"{PRIOR} (no --calibration)") -> Losses:
    """The losses without calibration images."""
    shape = method.context.shape
    step = prior_loss(
        method.preset.family, tokens=shape.tokens, prefix=shape.prefix, blocks=shape.blocks
    )
    return step, words


def losses_on(
    model: Analysed, request: Request, images: Calibration, say: Progress, method: Method
) -> Losses:
    """The losses of a method on images; measured once, then cached."""
    measure = {"measured": measured_losses, "attention": attention_losses}[request.losses]
    shape = method.context.shape
    spread = np.linspace(0, len(method.sites) - 1, min(SITES, len(method.sites)))
    sites = [method.sites[i] for i in sorted({round(x) for x in spread})]
    few = [shape.prefix + max(round(s * shape.patches), 1) for s in SHARES]
    names = [site.name for site in sites]

    def make() -> dict[str, Any]:
        def progress(text: str) -> None:
            say(f"{method.preset.name}: {text}")

        made = measure(model.graph, method, sites, few, images.samples, progress=progress)
        return made.to_json()

    key = losses_key(model.source, method.text, images.digest, names, few, request)
    found = SiteLosses.from_json(cached(KIND, key, make, SiteLosses.from_json))
    words = f"{found.unit}, {found.kind} on {found.images} images ({found.source})"
    return found.step(), words


def losses_key(
    model: str | Path,
    method: str,
    digest: str,
    sites: Sequence[str],
    counts: Sequence[int],
    request: Request,
) -> dict[str, Any]:
    """All that losses depend on, as JSON values.

    Args:
        method: as in `--method`, parameters included.
        digest: of the calibration data.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": describe_source(model).digests,
        "method": method,
        "data": digest,
        "sites": list(sites),
        "counts": sorted(set(counts)),
        "kind": request.losses,
        "outputs": request.outputs,
        "seed": request.seed,
        "bound": {**request.bound, "tower": request.tower},
    }
