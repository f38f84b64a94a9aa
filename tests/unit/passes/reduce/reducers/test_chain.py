"""`chain`: what goes along with the tokens that a step left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.reducing import reduced
from tests.unit.passes.reduce.reducers.given import tokens


@pytest.mark.parametrize("segments", [1, 2])
def test_inside_an_attention_every_step_goes_by_the_stream_of_those_that_are_left(
    segments: int,
) -> None:
    """Who leaves is as if the stream beside were what tokens leave; the rows are not."""
    drop = {"name": "merge", "metric": "x", "combine": "drop", "sizes": False}
    steps = [{"reducer": drop, "keep": k // segments} for k in (12, 8)]
    prefix = 1 if segments == 1 else 0
    t, other = (tokens(16, prefix=prefix, seed=i) for i in (0, 1))
    found = reduced("chain", replace(t, beside=other.x), 8, steps=steps, segments=segments)
    alone = reduced("chain", other, 8, steps=steps, segments=segments)
    np.testing.assert_array_equal(found.index, alone.index)
    np.testing.assert_array_equal(found.owner, alone.owner)
    rows = np.take_along_axis(t.patches, found.index[..., None], axis=1)
    np.testing.assert_array_equal(found.x[:, prefix:], rows)
    by_itself = reduced("chain", t, 8, steps=steps, segments=segments)
    assert (by_itself.index != found.index).any()


def test_a_later_step_sees_the_keys_of_those_that_are_left() -> None:
    """By head, as `neighbours` reads them: it makes what it makes of those tokens alone."""
    t = tokens(16, prefix=1, seed=2)
    assert t.score is not None
    first = reduced("topk", t, 12)
    at = np.concatenate([np.zeros((len(t.x), 1), int), 1 + first.index], 1)[..., None]
    left = replace(
        t,
        x=np.take_along_axis(t.x, at, 1),
        keys=np.take_along_axis(t.keys, at, 1),
        score=np.take_along_axis(t.score, first.index, 1),
    )
    steps = [
        {"reducer": {"name": "topk"}, "keep": 12},
        {"reducer": {"name": "neighbours", "neighbours": 3}, "keep": 8},
    ]
    found = reduced("chain", t, 8, steps=steps)
    alone = reduced("neighbours", left, 8, neighbours=3)
    np.testing.assert_allclose(found.x, alone.x, rtol=1e-5, atol=1e-6)
