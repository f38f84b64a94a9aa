"""Scores of earlier blocks, carried to the tokens of now."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec
from tests.unit.passes.reduce.scores.graphs import (
    Array,
    Step,
    VitSpec,
    beside,
    close,
    images,
    kept,
    scored,
    taps,
)

VIT = VitSpec(depth=4, pool="none")
NORM = Spec("norm")


def row(x: Array, block: int) -> Array:
    return np.asarray(taps(x, f"attn:{block}", VIT).attention.mean(1)[:, 0, 1:])


def taken(values: Array, index: Array) -> Array:
    return np.take_along_axis(values, index, 1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("site", "block"), [("attn:2", 1), ("block:2", 1), ("around:2", 1)])
def test_previous(site: str, block: int, batch: int) -> None:
    x = images(batch)
    found = scored(Spec("cls", {"source": "previous"}), x, site, spec=VIT)
    close(found, row(x, block))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("left", ["attn:1", "block:1"])
def test_previous_across_a_reduction(batch: int, left: str) -> None:
    """Tokens leave in or after the block before."""
    x = images(batch)
    step: Step = (left, NORM, "topk", 9)
    found = scored(Spec("cls", {"source": "previous"}), x, "attn:2", before=[step], spec=VIT)
    close(found, taken(row(x, 1), kept([step], x, VIT)))


@pytest.mark.parametrize("tau", [0.5, 0.3])
@pytest.mark.parametrize("batch", [1, 3])
def test_ema(tau: float, batch: int) -> None:
    x = images(batch)
    expected = row(x, 0)
    for block in (1, 2):
        expected = (1 - tau) * expected + tau * row(x, block)
    found = scored(Spec("cls", {"source": "ema", "tau": tau}), x, "attn:2", spec=VIT)
    close(found, expected)


def test_ema_across_reductions() -> None:
    """Each token that is left keeps its own history."""
    x = images(3)
    ema = Spec("cls", {"source": "ema"})
    steps: list[Step] = [("block:0", NORM, "topk", 12), ("attn:1", NORM, "topk", 8)]
    first, second = kept(steps[:1], x, VIT), kept(steps, x, VIT)
    own = [scored(Spec("cls"), x, f"attn:{i}", before=steps[:i], spec=VIT) for i in (1, 2)]
    history = (taken(row(x, 0), first) + own[0]) / 2
    place = np.stack([np.searchsorted(a, b) for a, b in zip(first, second, strict=True)])
    expected = (taken(history, place) + own[1]) / 2
    close(scored(ema, x, "attn:2", before=steps, spec=VIT), expected)


def test_tokens_that_bypass_keep_their_average() -> None:
    x = images(3)
    step: Step = ("around:1", NORM, "bypass", 6)
    ran = scored_rows_of(x, step)
    index = np.sort(np.argsort(-scored(NORM, x, "around:1", spec=VIT), kind="stable")[:, :6], 1)
    expected = row(x, 0)
    np.put_along_axis(expected, index, (taken(expected, index) + ran) / 2, 1)
    found = scored(Spec("cls", {"source": "ema"}), x, "around:2", before=[step], spec=VIT)
    close(found, expected)
    # And `previous` knows nothing of those that did not run.
    found = scored(Spec("cls", {"source": "previous"}), x, "around:2", before=[step], spec=VIT)
    zeros = np.zeros_like(expected)
    np.put_along_axis(zeros, index, ran, 1)
    close(found, zeros)


def scored_rows_of(x: Array, step: Step) -> Array:
    """[B, K] the CLS row of a bypassed block, of those that ran: by numpy, from the dense block."""
    t = taps(x, step[0], VIT)
    length = np.linalg.norm(t.x[:, 1:], axis=-1)
    index = np.sort(np.argsort(-length, kind="stable")[:, : step[3]], 1)
    whole = np.concatenate([np.zeros((len(x), 1), np.int64), index + 1], 1)
    q, k = (np.take_along_axis(a, whole[:, None, :, None], 2) for a in (t.q, t.k))
    logits = q[:, :, :1] @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    e = np.exp(logits)
    return np.asarray((e / e.sum(-1, keepdims=True)).mean(1)[:, 0, 1:])


def received(x: Array, block: int) -> Array:
    return np.asarray(taps(x, f"attn:{block}", VIT).attention[:, :, 1:, 1:].sum(2).mean(1))


def test_cumulative() -> None:
    x = images(3)
    total: dict[str, Any] = {"cumulative": True}
    found = scored(Spec("colsum", total), x, "attn:2", spec=VIT)
    close(found, received(x, 0) + received(x, 1) + received(x, 2))
    step: Step = ("block:0", NORM, "topk", 9)
    found = scored(Spec("colsum", total), x, "attn:1", before=[step], spec=VIT)
    own = scored(Spec("colsum"), x, "attn:1", before=[step], spec=VIT)
    close(found, taken(received(x, 0), kept([step], x, VIT)) + own)


def test_refusals() -> None:
    x = images(1)
    with pytest.raises(UsageError, match="no block before has an attention"):
        scored(Spec("cls", {"source": "previous"}), x, "attn:0", spec=VIT)
    with pytest.raises(UsageError, match="no block before has an attention"):
        scored(Spec("cls", {"source": "ema"}), x, "around:0", spec=VIT)
    with pytest.raises(UsageError, match="no block before has an attention"):
        scored(Spec("colsum", {"cumulative": True}), x, "around:0", spec=VIT)
    with pytest.raises(UsageError, match="tokens were made of others"):
        scored(
            Spec("cls", {"source": "ema"}),
            x,
            "attn:2",
            spec=VIT,
            before=[("block:0", Spec("cls"), "fuse", 9)],
        )


def test_tokens_that_came_back_have_the_score_of_their_owner() -> None:
    x = images(2)
    steps: list[Step] = [("block:0", NORM, "topk", 6)]
    left = scored(Spec("cls"), x, "attn:1", before=steps, spec=VIT)
    back: Step = ("block:1", Spec("norm"), "return", 16)
    found = scored(
        Spec("cls", {"source": "previous"}), x, "attn:2", before=[*steps, back], spec=VIT
    )
    for b in range(2):
        assert set(found[b].tolist()) <= set(left[b].tolist())
    index = kept(steps, x, VIT)
    close(taken(found, index), left)


@pytest.mark.parametrize("spelling", ["plain", "joined", "leading", "behind"])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_recomputed_is_what_the_block_computes(spelling: str, batch: int) -> None:
    """Of the tokens that are left, the log of their sizes added to the logits."""
    x, before = images(batch), [("attn:0", None, "merge", 9)]
    found, rows = beside(Spec("colsum", {"queries": "all"}), x, 1, before, spelling)
    close(found, rows.mean(1).sum(1)[:, 1:])
    found, rows = beside(Spec("cls", {"agg": "max"}), x, 1, before, spelling)
    close(found, rows.max(1)[:, 0, 1:])
