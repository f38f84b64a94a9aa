"""The prior: its shape, and that every preset's family has one."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.presets import PRESETS
from tcompile.planning.optimise.prior import PRIORS, prior_loss

N = np.arange(2, 198)


@pytest.mark.parametrize("family", sorted(PRIORS))
def test_its_shape(family: str) -> None:
    loss = prior_loss(family, tokens=197, prefix=1, blocks=12)
    sites = [f"{k}:{b}" for b in range(12) for k in ("attn", "block")]
    table = np.stack([loss(s, N[:, None], N[None, :]) for s in sites])
    lower = np.tril(np.ones((len(N), len(N)), bool), -1)
    assert np.all(table[:, ~lower] == 0)
    assert np.all(table[:, lower] > 0)
    # The more leaves the more is lost, faster and faster; never less in an earlier block.
    from_all = table[:, -1]
    assert np.all(np.diff(from_all, axis=1) < 0)
    assert np.all(np.diff(from_all, 2, axis=1) > 0)
    assert np.all(np.diff(table[:, lower], axis=0) <= 1e-12)
    if family != "output":
        assert table[0, -1, 0] > table[-1, -1, 0]
    if PRIORS[family].merges:
        # Each step finds its best pairs anew: many small ones lose less than one large one.
        halves = loss("attn:3", 197, 170) + loss("attn:3", 170, 143)
        assert halves < 0.7 * loss("attn:3", 197, 143)
        return
    # Two steps at one depth lose what one does.
    assert loss("attn:3", 197, 60) + loss("attn:3", 60, 20) == pytest.approx(
        loss("attn:3", 197, 20)
    )
    assert loss("output", 197, 60) == pytest.approx(loss("block:11", 197, 60))


def test_every_family_of_presets_has_one() -> None:
    assert {method.family for method in PRESETS} <= set(PRIORS)
    with pytest.raises(UsageError, match="no prior for 'magic'"):
        prior_loss("magic", tokens=197, prefix=1, blocks=12)
