"""The cheap alternative: how much attention the tokens that leave would have been paid.

After FitPrune (Ye et al., AAAI 2025), whose loss of a layer is the share of attention mass of the
tokens that leave it. Here, for a step at the site of block l that keeps n tokens,

    at(n) = mean over images of (1/L) · Σ_{l' > l} Σ_{j leaves} share_{l'}(j)

with share_{l'}(j) the part of block l''s attention to patches that j is paid in the dense model,
and those leave that the score ranks lowest in block l. Where the outputs read patches, and not CLS
alone, they count as one more block, with the shares of the last one. So at is 1 at most, and what
leaves early is missed by more blocks.

It looks at no output, and takes every method for one that drops what it scores lowest: merged
tokens leave an average behind, which this does not see. Its losses rank schedules of one method on
one model; they are never compared with measured ones, let alone with a drop. In the experiment of
`losses.distance` they rank drops by 0.873 (topk), 0.869 (evit) and 0.797 (tome), where losses of
single steps that were measured and added up reach 0.985, 0.988 and 0.960.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Spec
from tcompile.methods.calibration import observed
from tcompile.methods.context import SiteRule
from tcompile.methods.method import Method
from tcompile.planning.losses.base import SiteLosses, through, whole_counts
from tcompile.runtime.metrics import holds_classes
from tcompile.runtime.samples import Samples

UNIT = "share of attention mass"
#: Scores that are attention paid, of one block at a time.
_PAID = ("cls", "attn", "colsum", "rowmean")

Floats = npt.NDArray[np.float64]


def attention_losses(
    graph: gs.Graph,
    method: Method,
    sites: Sequence[SiteRule],
    counts: Sequence[int],
    samples: Samples,
    *,
    progress: Progress = silent,
) -> SiteLosses:
    """Losses by attention mass, from one pass of the dense model.

    Args:
        graph: the dense model in normal form, weights included.
        sites: where tokens may leave; others are interpolated in depth.
        counts: whole token counts, prefix included; N is added. Where tokens leave in groups, the
            next larger count that can be is looked at instead.

    Raises:
        UsageError: no count lies below the model's, or attention within windows.
    """
    analysis, shape = method.analysis, method.analysis.shape
    progress(f"calibrating: attention of the dense model on {len(samples)} images")
    grid = whole_counts(shape, counts)
    if len(grid) < 2:
        raise UsageError("no count lies below the model's own", where="--calibration")
    specs = [_score(method, site, grid[0]) for site in sites]
    scores = [s for i, s in enumerate(specs) if s not in specs[:i]]
    shares = observed(graph, analysis, scores, samples.arrays)
    read = _reads_patches(graph, analysis)
    at: dict[str, tuple[float, ...]] = {}
    for site, spec in zip(sites, specs, strict=True):
        lost = _lost(shares[scores.index(spec)], site.place(shape.blocks)[0], read)
        known = {n: float(lost[n - shape.prefix - 1]) for n in method.reachable(site, grid)}
        at[site.name] = through(known, grid, shape.prefix)
    names = ", ".join(sorted({s.name for s in specs}))
    return SiteLosses(
        grid,
        at,
        shape.blocks,
        shape.prefix,
        UNIT,
        len(samples),
        samples.source,
        notes=(f"attention as the score {names} reads it",),
    )


def _lost(shares: Floats, block: int, read: bool) -> Floats:
    """[T]: the mass lost when the 1, 2, … T best tokens of a block stay.

    Args:
        shares: [blocks, images, patches].
        read: whether the outputs read patches.
    """
    blocks = len(shares)
    after = shares[block + 1 :].sum(axis=0)  # [images, patches]
    if read:
        after = after + shares[-1]
    # Ties as TopK takes them: the first stays.
    order = np.argsort(-shares[block], axis=-1, kind="stable")
    kept = np.take_along_axis(after, order, axis=-1).cumsum(axis=-1)
    return np.asarray(np.maximum(kept[:, -1:] - kept, 0.0).mean(axis=0) / blocks)


def _score(method: Method, site: SiteRule, count: int) -> Spec:
    """The method's own score where it is attention paid, else that of CLS or of the patches."""
    count = min(count, method.context.shape.tokens - site.granularity)  # Or all of them would stay.
    own = method.single_step(site, count).reductions[0].score
    if own is not None and own.name in _PAID and not own.parameters.get("cumulative"):
        return own
    return Spec("cls" if method.analysis.has_cls else "attn")


def _reads_patches(graph: gs.Graph, analysis: Analysis) -> bool:
    """Tell whether what `distance` looks at depends on patches of the last block, not on CLS
    alone."""
    if not analysis.has_cls:
        return True
    space, axes = analysis.space, analysis.facts.axes
    flat = np.empty((1, 2), np.float32)
    if any(len(o.shape) == 2 and holds_classes(str(o.name), flat) for o in graph.outputs):
        return False
    runs = [space.runs[a] for o in graph.outputs for a in axes[str(o.name)] if a in space.runs]
    return any(first <= space.patch < last for first, last in runs)
