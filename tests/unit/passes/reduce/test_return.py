"""Tokens that come back, that merge for one attention, that leave by several reducers in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.unit.passes.reduce.test_reduce import images, run

SHAPE = Shape(17, 1, 16, 4)
NORM, CLS = Spec("norm"), Spec("cls")
TOPK, FUSE = Spec("topk"), Spec("fuse")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT whose output is its tokens after the final norm."""
    folder = tmp_path_factory.mktemp("return")
    return save_tiny_vit(folder / "vit.onnx", VitSpec(depth=4, pool="none"), batch=None)


def back(block: int, fill: str = "stale") -> Reduction:
    return Reduction(f"block:{block}", None, Spec("return", {"fill": fill}), 16)


def reduced(path: Path, *steps: Reduction, outputs: str = "reduced") -> list[np.ndarray[Any, Any]]:
    made = pipeline.reduce(path, schedule=Schedule("test", SHAPE, steps), outputs=outputs)
    return run(made.graph, images(3))


def test_stale_tokens_are_those_that_bypassed(tokens: Path) -> None:
    """Leaving behind block 0 and coming back behind block 1 is bypassing block 1."""
    gone = reduced(tokens, Reduction("block:0", NORM, TOPK, 7), back(1))
    passed = reduced(tokens, Reduction("around:1", NORM, Spec("bypass"), 7))
    np.testing.assert_allclose(gone[0], passed[0], rtol=0, atol=1e-6)
    assert np.abs(gone[0] - reduced(tokens)[0]).max() > 1e-2


def test_owners_copies_are_restored_outputs(tokens: Path) -> None:
    steps = (Reduction("attn:0", CLS, TOPK, 9), Reduction("attn:2", CLS, TOPK, 5))
    copied = reduced(tokens, *steps, back(3, "owner"))
    restored = reduced(tokens, *steps, outputs="restored")
    np.testing.assert_allclose(copied[0], restored[0], rtol=0, atol=1e-6)


def test_twice_gone_is_as_it_was_last(tokens: Path) -> None:
    """What left first is older than what left second; a fused token comes back to no place."""
    first, second = Reduction("attn:0", NORM, TOPK, 9), Reduction("block:1", NORM, FUSE, 5)
    both = reduced(tokens, first, second, back(3))[0]
    one = reduced(tokens, first, back(3))[0]
    assert both.shape == one.shape == (3, 17, 32)
    # Those that left at first are the same in both, all others differ.
    same = np.isclose(both, one, atol=1e-6).all(-1)[:, 1:].sum(1)
    assert (same == 16 - 9).all()


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_filled(tokens: Path, fill: str) -> None:
    step = Reduction("attn:1", NORM, TOPK, 6)
    kept, index = reduced(tokens, step)
    full = reduced(tokens, step, back(3, fill))[0]
    rows = np.take_along_axis(full, index[:, 1:, None], axis=1)
    np.testing.assert_allclose(rows, kept[:, 1:], rtol=0, atol=1e-5)
    gone = [[i for i in range(1, 17) if i not in sample] for sample in index.tolist()]
    rest = np.take_along_axis(full, np.asarray(gone)[..., None], axis=1)
    np.testing.assert_allclose(rest, rest[:, :1] + np.zeros_like(rest), rtol=0, atol=1e-5)
    stale = reduced(tokens, step, back(3))[0]
    assert np.abs(stale - full).max() > 1e-2


def test_after_they_came_back_others_may_leave(tokens: Path) -> None:
    out = reduced(
        tokens, Reduction("attn:0", CLS, TOPK, 9), back(0), Reduction("attn:2", CLS, TOPK, 5)
    )
    assert [a.shape for a in out] == [(3, 6, 32), (3, 6)]


def test_a_chain_of_one_kind_is_its_last(tokens: Path) -> None:
    steps = [{"reducer": {"name": "topk"}, "keep": k} for k in (12, 9, 6)]
    chained = reduced(tokens, Reduction("attn:1", CLS, Spec("chain", {"steps": steps}), 6))
    direct = reduced(tokens, Reduction("attn:1", CLS, TOPK, 6))
    for a, b in zip(chained, direct, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_a_step_of_a_chain_may_have_a_score_of_its_own(tokens: Path) -> None:
    """Dropping by norm, then by CLS among those left, is in two sites' terms: first one, then the
    other, both scores being of all that arrive."""
    norm = {"reducer": {"name": "topk"}, "keep": 9, "score": {"name": "norm"}}
    cls = {"reducer": {"name": "topk"}, "keep": 4, "score": {"name": "cls"}}
    both = Reduction("attn:1", None, Spec("chain", {"steps": [norm, cls]}), 4)
    index = reduced(tokens, both)[1][:, 1:]
    by_norm = reduced(tokens, Reduction("attn:1", NORM, TOPK, 9))[1][:, 1:]
    order = [reduced(tokens, Reduction("attn:1", CLS, TOPK, k))[1][:, 1:] for k in range(1, 16)]
    for n in range(3):
        # The least k for which four of the k best by CLS are among those left by norm.
        kept = next(
            left
            for k in order
            if len(left := sorted(set(k[n].tolist()) & set(by_norm[n].tolist()))) == 4
        )
        assert kept == index[n].tolist()


def test_merged_for_one_attention_only(tokens: Path) -> None:
    """Tokens of one owner get the same from the attention; the stream stays whole."""
    out = reduced(tokens, Reduction("inside:1", None, Spec("merge"), 9))
    assert [a.shape for a in out] == [(3, 17, 32)]
    difference = np.abs(out[0] - reduced(tokens)[0]).max()
    assert 1e-4 < difference < 10


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([back(1)], "no token has left"),
        (
            [Reduction("attn:0", CLS, TOPK, 9), Reduction("attn:1", None, Spec("return"), 16)],
            "behind a block only",
        ),
        (
            [Reduction("attn:0", CLS, TOPK, 9), Reduction("block:1", None, Spec("return"), 12)],
            "all 16 tokens come back, not 12",
        ),
        ([Reduction("attn:0", CLS, TOPK, 9), back(1, "upsample")], "still are a grid"),
        ([Reduction("attn:0", CLS, TOPK, 9), back(1, "old")], "is not stale, owner"),
        ([Reduction("inside:0", CLS, TOPK, 9)], "can only be merged"),
        (
            [
                Reduction("around:1", CLS, Spec("bypass"), 9),
                Reduction("inside:1", None, Spec("merge"), 9),
            ],
            "of one block",
        ),
        ([Reduction("attn:0", CLS, Spec("chain", {"steps": []}), 9)], "the last step of a chain"),
        (
            [Reduction("attn:0", CLS, Spec("chain", {"steps": [{"keep": 9}]}), 9)],
            "{reducer, keep, score}",
        ),
        (
            [
                Reduction(
                    "attn:0",
                    None,
                    Spec("chain", {"steps": [{"reducer": {"name": "topk"}, "keep": 9}]}),
                    9,
                )
            ],
            "needs a score",
        ),
        (
            [
                Reduction(
                    "attn:0",
                    CLS,
                    Spec(
                        "chain",
                        {
                            "steps": [
                                {"reducer": {"name": "fuse"}, "keep": 9},
                                {"reducer": {"name": "topk"}, "keep": 5},
                            ]
                        },
                    ),
                    5,
                )
            ],
            "can only be the last",
        ),
        (
            [
                Reduction(
                    "attn:0",
                    CLS,
                    Spec(
                        "chain",
                        {
                            "steps": [
                                {"reducer": {"name": "bypass"}, "keep": 9},
                                {"reducer": {"name": "topk"}, "keep": 5},
                            ]
                        },
                    ),
                    5,
                )
            ],
            "its place is around a block",
        ),
        ([Reduction("attn:0", Spec("probe"), TOPK, 9)], "needs a learned query"),
    ],
)
def test_what_cannot_be(tokens: Path, steps: list[Reduction], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        reduced(tokens, *steps)
