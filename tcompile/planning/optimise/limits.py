"""What every plan must keep to, whatever it is optimised for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.planning.optimise.tables import Tables

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """Constraints on all steps; those of a single site are its `SiteRule`.

    Attributes:
        align: tokens that stay, prefix included, are a multiple of it.
        topk: the most patches that may stay after a step, because TopK takes no larger K
            (3840 in TensorRT); None: any.
        max_steps: the most steps; None: any.
        once_per_block: at most one step a block; the output belongs to the last one.
        final_least, final_most: tokens that leave the model, prefix included.
    """

    align: int = 1
    topk: int | None = None
    max_steps: int | None = None
    once_per_block: bool = False
    final_least: int | None = None
    final_most: int | None = None

    def __post_init__(self) -> None:
        if self.align < 1 or (self.max_steps is not None and self.max_steps < 0):
            raise UsageError(
                "needs an alignment of at least 1 and no negative number of steps", where="limits"
            )


def allowed(tables: Tables, site: int, limits: Limits) -> Mask:
    """[G, G]: whether the step from counts[i] to counts[j] is allowed at a site, by number."""
    rule, n = tables.sites[site], np.asarray(tables.counts)
    patches = n - tables.prefix
    target = (n >= rule.least) & (patches % rule.granularity == 0) & (n % limits.align == 0)
    if limits.topk is not None:
        target &= patches <= limits.topk
    gone = n[:, None] - n[None, :]
    mask: Mask = (gone > 0) & target[None, :]
    if rule.most_dropped is not None:
        # A share such as 0.1 of 30 patches is 3, whatever its binary form makes of it.
        mask &= gone <= np.floor(rule.most_dropped * patches[:, None] + 1e-9)
    return mask


def final_allowed(tables: Tables, limits: Limits) -> Mask:
    """[G]: whether so many tokens may leave the model."""
    n = np.asarray(tables.counts)
    least = n[0] if limits.final_least is None else limits.final_least
    most = n[-1] if limits.final_most is None else limits.final_most
    return np.asarray((n >= least) & (n <= most))
