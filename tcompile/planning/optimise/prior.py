"""The loss of a step where there are no images to measure it on: a prior.

loss(site, n_in → n_out) = scale · w(x) · h
h = g(n_out/N) − g(n_in/N),   g(r) = (1 − r)² / r          where tokens leave by a score
h = f²,  f = (n_in − n_out) / n_in                         where they merge with the most alike
w(x) = 1 + early · (1 − x)ᵖ,  x = depth of the site, from 0 before the first block to 1

with counts of patches only. Why this shape, each part a judgement:
- g is 0 with zero slope at r = 1: the first tokens to go are background or duplicates and cost next
  to nothing. It grows like 1/r as few remain. g(0.7), g(0.5), g(0.25) are 0.13, 0.5 and 2.25, about
  the proportions in which published accuracies fall (a few tenths of a point at 0.7, one or two at
  0.5, then fast).
- A difference of g: two steps at one depth lose what one does, so that the planner gains nothing by
  cutting a step in pieces.
- Merging is another matter: every step finds its best pairs anew, so that it counts how many of its
  own tokens it merges. ToMe on a trained ViT-S (DINOv2's architecture, 12 blocks, 256 patches, its
  saliency map on photos), down to 0.6 of the patches in the 1, 2, 4 or 12 blocks around or from
  block 3, loses like 9.4 : 5.6 : 2.7 : 1, f² like 7.6 : 4.9 : 2.7 : 1. In blocks 0 to 5 it loses
  3.7, twice what steps at one depth would: so w.
- w falls with depth: early scores see little context, and what leaves early is missed by every
  block that follows. For pruning, whose scores are attention paid, it falls fast (p = 3, early 8):
  measured losses of single steps to half the tokens on `zoo:glyphs` stand like 6.6 : 3.1 : 1.9 :
  1.2 : 1 over its first five blocks, w like 6.4 : 3.9 : 2.3 : 1.4 : 1; and papers prune from a
  quarter of the depth on.
- scale orders the families: bypassed tokens come back, merged ones leave a mean behind, pruned ones
  are gone, and static choices do not look at the image.

Losses of this prior rank plans of one method on one model. They are in no unit: never compare them
with a measured drop, and prefer images, be they procedural scenes, wherever there are any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.planning.optimise.tables import Floats, StepFunction


@dataclass(frozen=True)
class Prior:
    """A prior: how much a family loses, how much more at the first block than after the last, how
    fast that falls, and whether its steps merge."""

    scale: float
    early: float
    power: float = 1.0
    merges: bool = False


#: By family of preset (`Preset.family`).
PRIORS: dict[str, Prior] = {
    "prune": Prior(1.0, 8.0, 3.0),
    "calibrated": Prior(1.0, 8.0, 3.0),
    "head": Prior(0.8, 3.0),  # Scores that were learned.
    "prune, merge": Prior(0.7, 3.0),
    "merge": Prior(0.5, 6.0, 4.0, merges=True),
    "dense": Prior(0.4, 2.0),  # Tokens that leave come back.
    "output": Prior(1.0, 0.0),  # Nothing follows that could miss them.
    "static": Prior(2.0, 2.0),  # Does not look at the image.
}


def growth(n: npt.ArrayLike, prefix: int, patches: int) -> Floats:
    """Return g(r) = (1 − r)² / r, with r the share of the patches that n tokens, prefix included,
    keep."""
    left = np.maximum(np.asarray(n, np.float64) - prefix, 1.0) / patches
    return np.asarray((1 - left) ** 2 / left)


def depth(site: str, blocks: int) -> float:
    """Return the depth of a site in blocks: attn:3 at 3.5, block:3 at 4, the output half a block
    behind the last."""
    block, half = SiteName(site).depth(blocks)
    return block + (half + 1) / 2


def prior_loss(family: str, *, tokens: int, prefix: int, blocks: int) -> StepFunction:
    """Return the prior of a family as `Tables.of` takes it; see the module's docstring.

    Raises:
        UsageError: no such family.
    """
    if family not in PRIORS:
        raise UsageError(f"no prior for '{family}': {', '.join(PRIORS)}", where="family")
    prior, patches = PRIORS[family], tokens - prefix

    def loss(site: str, n_in: npt.NDArray[np.int64], n_out: npt.NDArray[np.int64]) -> Floats:
        deep = min(depth(site, blocks) / blocks, 1.0)
        weight = prior.scale * (1 + prior.early * (1 - deep) ** prior.power)
        if prior.merges:
            left = np.minimum((n_out - prefix) / np.maximum(n_in - prefix, 1), 1.0)
            more = (1 - left) ** 2
        else:
            more = growth(n_out, prefix, patches) - growth(n_in, prefix, patches)
        return np.asarray(weight * np.maximum(more, 0.0))

    return loss
