"""Models whose tokens are no plain patches of one image (tests/support/token_sets.py): the token
axis is found, and no axis of features, heads or cameras is taken for it.

What is reduced is held against an oracle that shares nothing with the compiler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import ModelError
from tcompile.core.save import save
from tests.oracles.compare import infer
from tests.support import token_sets as sets
from tests.support.judge import judge
from tests.support.onnx_models import to_onnx


def saved(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(sets.ALL[name](), path)
    return path


#: Model → its tokens: before the patches, patches; and its blocks.
REDUCED = {
    "drops": (1, 8, 2),
    "drops-nd": (1, 8, 2),
    "drops-gather": (1, 8, 2),
    "drops-often": (1, 6, 1),
    "fuses": (1, 9, 2),
    "sorts": (0, 16, 2),
    "sorts-and-adds": (0, 16, 4),
    "reordered": (0, 16, 2),
    "swapped": (0, 32, 4),
    "tokens-given": (0, 16, 4),
    "merges": (0, 12, 2),
    "shuffles": (1, 16, 2),
    "two-images": (1, 32, 4),
    "two-images-no-cls": (0, 32, 4),
    "frames": (1, 48, 4),
    "prompted": (4, 16, 4),
    "prompted-shallow": (4, 16, 4),
    "learned-keys": (1, 16, 4),
    "learned-keys-behind": (1, 16, 4),
    "unknown": (0, 16, 4),
    "merger": (0, 16, 4),
    "merger-grid": (0, 16, 4),
}


@pytest.mark.parametrize("name", REDUCED)
def test_tokens_leave_and_the_result_is_right(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path)
    found = pipeline.read(path).analysis
    assert (found.space.prefix, found.space.patches, len(found.blocks)) == REDUCED[name]
    assert any(site.legal for site in found.sites)
    if name not in READ:
        assert judge(path, "topk", 0.5).kind == "equal"


def logits(path: Path, images: np.ndarray[Any, Any], **request: Any) -> np.ndarray[Any, Any]:
    made = pipeline.reduce(path, **request)
    assert made.schedule.reductions
    return infer(to_onnx(made.graph), {"images": images})["logits"]


#: Those that take longest or are like another are read, and not run.
READ = {"drops-nd", "drops-gather", "drops-often", "prompted-shallow", "learned-keys-behind"}
READ |= {"two-images-no-cls", "merger", "unknown", "sorts"}


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_cameras_lose_tokens_as_images_of_a_batch_do(method: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    batch = tmp_path / "batch.onnx"
    onnx.save(sets.batch_of(3), batch)
    request = {"keep": 0.5, "method": method}
    wanted = logits(batch, images, **request).mean(0)
    for name in ("cameras", "free-cameras"):
        found = logits(saved(name, tmp_path), images[None], **request)[0]
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_tokens_of_all_cameras_are_not_merged_where_they_are_pooled_together(
    tmp_path: Path,
) -> None:
    site = pipeline.read(saved("cameras-joined", tmp_path)).analysis.site("attn:0")
    assert site is not None
    assert site.legal
    assert "pools tokens that are merged with another axis" in site.reduced.merge


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unknown-late", "Trilu 'trilu_62' is not an op that tcompile knows"),
        ("sorts-and-adds", "TopK 'topk_63' puts tokens in the order of their values"),
        ("swapped", "Add 'add_68' joins tokens with tokens in another order"),
        ("by-turns", "block 2 attends within each of 3 images or rows apart"),
        ("by-turns-special", "its tokens are those of 3 images or tiles, each with special tokens"),
        ("two-images-map", "Slice 'slice_127' takes particular patch tokens"),
    ],
)
def test_what_is_in_the_way_is_named(name: str, says: str, tmp_path: Path) -> None:
    site = pipeline.read(saved(name, tmp_path)).analysis.site("attn:0")
    assert site is not None
    assert says in site.reason


def test_what_tcompile_has_reduced_is_not_reduced_again(tmp_path: Path) -> None:
    made = pipeline.reduce(saved("two-images", tmp_path), keep=0.5, method="topk")
    save(made.graph, tmp_path / "reduced.onnx", made.metadata)
    with pytest.raises(ModelError, match="tcompile has reduced this model already"):
        pipeline.inspect(tmp_path / "reduced.onnx")


def test_fixed_tokens_between_those_of_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fixed tokens stand between .* \(1 fixed \+ 16 of an"):
        pipeline.inspect(saved("each-with-cls", tmp_path))


def test_features_of_given_tokens_are_not_tokens(tmp_path: Path) -> None:
    found = pipeline.read(saved("tokens-given-of-cameras", tmp_path)).analysis
    assert (found.space.patches, len(found.blocks)) == (16, 4)
    assert found.space.whole_patches is not None


@pytest.mark.parametrize(
    ("name", "node", "says"),
    [
        ("reordered", "gather_62", "in its own order"),
        ("merger", "transpose_121", "ends a region of views"),
        ("drops", "topk_67", "before the first block"),
    ],
)
def test_what_moves_tokens_can_be_explained(
    name: str, node: str, says: str, tmp_path: Path
) -> None:
    assert says in pipeline.explain(saved(name, tmp_path), node).to_text()


def test_sets_in_one_stream_are_counted(tmp_path: Path) -> None:
    page = pipeline.inspect(saved("two-images", tmp_path)).to_text()
    assert "the patches are 2 sets in one stream: 16 + 16" in page


def test_a_file_that_drops_tokens_says_so(tmp_path: Path) -> None:
    page = pipeline.inspect(saved("drops", tmp_path)).to_text()
    assert "the file drops tokens itself: TopK 'topk_67' gives 8 of 16" in page
    assert "2 attentions over 17 tokens" in page
