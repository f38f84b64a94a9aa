"""The table of losses: steps, depth, its document."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.methods.context import SiteRule
from tcompile.planning.losses.base import SiteLosses
from tcompile.planning.optimise.tables import Tables

LOSSES = SiteLosses(
    (51, 101, 201),
    {"attn:0": (0.9, 0.4, 0.0), "block:2": (0.3, 0.1, 0.0)},
    4,
    1,
    "nats",
    16,
    "16 images",
    notes=("a note",),
)


def test_two_steps_at_one_depth_lose_what_one_does() -> None:
    loss = LOSSES.step()
    n = np.array(LOSSES.counts)
    table = loss("attn:0", n[:, None], n[None, :])
    np.testing.assert_allclose(table[2], [0.9, 0.4, 0.0])
    np.testing.assert_allclose(table[1, 0] + table[2, 1], table[2, 0])
    assert np.all(table[np.triu_indices(3)] == 0)


@pytest.mark.parametrize(
    ("site", "share"),
    # attn:0 lies at depth 0.5 and block:2 at 3, so block:0 (1) and attn:1 (1.5) between.
    [("block:0", 0.2), ("attn:1", 0.4), ("block:1", 0.6), ("attn:3", 1.0), ("output", 1.0)],
)
def test_what_was_not_measured_lies_between_its_neighbours_in_depth(
    site: str, share: float
) -> None:
    found = LOSSES.curve(site)(np.array([51, 101]))
    np.testing.assert_allclose(found, [0.9 - 0.6 * share, 0.4 - 0.3 * share])


def test_the_optimiser_takes_it() -> None:
    zeros = np.zeros((4, 4))
    tables = Tables.of(
        (26, 51, 101, 201),
        1,
        attn_ms=zeros,
        mlp_ms=zeros,
        head_ms=zeros[0],
        stem_ms=0.0,
        sites=[SiteRule("attn:0"), SiteRule("block:1")],
        loss=LOSSES.step(),
        reducer_ms=lambda _s, _i, _o: 0.0,
    )
    assert tables.loss[0][3, 2] == pytest.approx(0.4)
    assert tables.loss[0][3, 0] > tables.loss[0][3, 1]


def test_losses_that_rise_with_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="fall to 0"):
        replace(LOSSES, at={"attn:0": (0.1, 0.2, 0.0)})
