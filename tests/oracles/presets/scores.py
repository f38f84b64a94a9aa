"""Importance of patches, [B, T], larger = keep, from the formulas of METHODS sections 1 and 2.1."""

from __future__ import annotations

import math

from torch import Tensor

from tests.oracles.moments import Attention, Moment


def queries(moment: Moment, attention: Attention | None = None) -> list[int]:
    """Whose attention stands for the importance: the class token's; in a model that reads none,
    that of ceil(sqrt(T)) evenly strided patches."""
    inner = (attention or moment.attention).inner
    if moment.encoder.cls:
        return [0]
    count = inner.stop - inner.start
    m = math.isqrt(count - 1) + 1
    return [inner.start + ((2 * i + 1) * count) // (2 * m) for i in range(m)]


def per_head(moment: Moment, attention: Attention | None = None) -> Tensor:
    """[B, H, T]: what the patches receive of `queries`, mean over these, after softmax over all
    keys."""
    own = attention or moment.attention
    return own.weights[:, :, queries(moment, own)].mean(dim=2)[..., own.inner]


def cls(moment: Moment) -> Tensor:
    """mean_h A[h, 0, j]."""
    return per_head(moment).mean(dim=1)
