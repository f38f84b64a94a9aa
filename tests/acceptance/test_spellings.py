"""Two spellings of one model reduce to the same outputs.

A mean over tokens follows the tokens however it is written, and so do a masked mean, a variance
with N - 1, and means inside blocks.

The spelling with ReduceMean is held against PyTorch that drops, fuses or merges inside the model
(tests/support/spelled_vit.py), at the tokens that the reduced model reports; the others are held
against that PyTorch and against what the ReduceMean spelling reduces to.
TCOMPILE_MATRIX=all tries every prefix, grid and batch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tests.oracles.compare import infer
from tests.oracles.exports import once
from tests.support.onnx_models import to_onnx
from tests.support.respelling import MASK, MEANS, SPREADS, respell
from tests.support.spelled_vit import (
    DEPTH,
    PLACES,
    Shape,
    SpelledViT,
    images,
    inside,
    spelled,
    write,
)

Arrays = dict[str, np.ndarray[Any, Any]]
pytestmark = pytest.mark.usefixtures("read_once")

ALL = os.environ.get("TCOMPILE_MATRIX", "") in ("all", "full")
KEEP = 0.6
#: Prefix, rows of patches, batch.
SHAPES = ((1, 4, 2), (0, 5, None), (5, 6, 2), (1, 6, None), (0, 4, 2), (5, 5, None))
EVERY = tuple(product((1, 0, 5), (4, 5, 6), (2, None)))
#: How tokens leave: a method and the outputs asked for.
WAYS = ("topk", "evit", "tome", "topk-restored", "tome-restored")
#: What float32 in another order may change, of the largest magnitude.
SAME = 3e-6

#: These look at each token's neighbours by what they are, and may be refused by name. Restored,
#: they may be given every token back.
NEIGHBOURS = {"average_pool": "AveragePool", "depthwise_conv": "Conv", "last_of_cumsum": "CumSum"}
#: A mask that is known at run time may be refused where tokens are fused (the new one has no place
#: in it) or merged (a merged one may be half hidden).
MASKS = ("mask_given", "mask_of_integers", "mask_of_truths", "mask_multiplied")


def refusal(name: str, way: str) -> str:
    """A pattern for the refusal that is allowed; empty where none is."""
    if name in NEIGHBOURS:
        return NEIGHBOURS[name]
    masked = name in MASKS and way in ("evit", "tome", "tome-restored")
    return f"respelled_|{MASK}" if masked else ""


def exported(shape: Shape, cache: Path) -> onnx.ModelProto:
    """The model as PyTorch writes it, every mean a ReduceMean."""
    folder = cache / "spelled"
    folder.mkdir(exist_ok=True)
    name = f"{shape.place}-{shape.prefix}-{shape.rows}-{shape.batch}.onnx"
    return onnx.load(once(folder / name, lambda path: write(shape, path)))


def feed(model: onnx.ModelProto, shape: Shape) -> Arrays:
    """Images, and a mask of ones where the model reads one."""
    found: Arrays = {"image": images(shape)}
    for info in model.graph.input:
        if info.name == MASK:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            found[MASK] = np.ones((2, shape.averaged), dtype)
    return found


def reduced(model: onnx.ModelProto, shape: Shape, way: str, path: Path) -> Arrays:
    """Outputs of what tcompile makes of the model."""
    data = model.SerializeToString()
    if not path.exists() or path.read_bytes() != data:  # else it has been read already
        path.write_bytes(data)
    method, _, outputs = way.partition("-")
    made = pipeline.reduce(path, keep=KEEP, method=method, outputs=outputs or "reduced")
    assert made.schedule.reductions
    return infer(to_onnx(made.graph), feed(model, shape))


def close(found: Arrays, expected: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, value in expected.items():
        error = float(np.abs(found[name].astype(np.float64) - value).max())
        allowed = SAME * float(np.abs(value).max())
        assert error <= allowed, f"{name}: {error:.2e}"


@pytest.fixture(scope="module")
def known() -> dict[tuple[Shape, str], Arrays]:
    """Return what the ReduceMean spelling gives, by shape and way."""
    return {}


KINDS = ("topk", "fuse", "merge")


# ---- the reference is right ----------------------------------------------------------------------


def by_hand(model: onnx.ModelProto, shape: Shape, path: Path, refused: str = "") -> None:
    """One cut of each kind, held against PyTorch that does it inside the model.

    Args:
        refused: what a refusal that is allowed says; empty: none is.
    """
    path.write_bytes(model.SerializeToString())
    for kind in KINDS:
        try:
            one_cut(model, shape, kind, path)
        except UsageError as error:
            if not refused or refused not in str(error):
                raise


def one_cut(model: onnx.ModelProto, shape: Shape, kind: str, path: Path) -> None:
    score = None if kind == "merge" else {"name": "cls" if shape.prefix else "attn"}
    keep = ceil(KEEP * shape.rows**2)
    cut = {"site": "attn:1", "score": score, "reducer": {"name": kind}, "keep": keep}
    tokens = {"tokens": shape.tokens, "prefix": shape.prefix, "patches": shape.rows**2}
    document = {"schema": 1, "method": "custom", "model": {**tokens, "blocks": DEPTH}}
    made = pipeline.reduce(path, schedule={**document, "reductions": [cut]})
    found = infer(to_onnx(made.graph), feed(model, shape))
    logits, rows = inside(shape, cut, found)
    close(found, {"logits": logits, "tokens": rows})


@pytest.mark.parametrize("place", [place for place in PLACES if place != "std"])
def test_a_mean_is_what_it_is_inside_the_model(place: Any, cache: Path, tmp_path: Path) -> None:
    for prefix, rows, batch in EVERY if ALL else SHAPES[PLACES.index(place) % 2 :: 2]:
        shape = Shape(place, prefix, rows, batch)
        by_hand(exported(shape, cache), shape, tmp_path / "model.onnx")


HAND = ("sum_over_n", "sum_over_shape", "averaging_matmul", "einsum_over_n", "mask_constant")


@pytest.mark.parametrize("name", HAND)
def test_another_spelling_is_what_it_is_inside_the_model(
    name: str, cache: Path, tmp_path: Path
) -> None:
    turn = HAND.index(name)
    for i, place in enumerate(("patches", "centre", "gate")):
        prefix, rows, batch = SHAPES[(turn + i) % len(SHAPES)]
        shape = Shape(place, prefix, rows, batch)  # type: ignore[arg-type]
        model = respell(exported(shape, cache), MEANS[name])
        by_hand(model, shape, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", SPREADS)
def test_a_deviation_counts_one_less_than_is_left(name: str, cache: Path, tmp_path: Path) -> None:
    """Of merged tokens, one less than they were: each counts as often as its size."""
    turn = list(SPREADS).index(name)
    for prefix, rows, batch in EVERY if ALL else (SHAPES[turn % 6], SHAPES[(turn + 3) % 6]):
        shape = Shape("std", prefix, rows, batch)
        model = respell(exported(shape, cache), SPREADS[name], spread=True)
        refused = "ReduceL2" if name == "length_over_root" else ""
        by_hand(model, shape, tmp_path / "model.onnx", refused)


# ---- two spellings, one model --------------------------------------------------------------------


def cases() -> list[tuple[Any, str, str, Shape]]:
    """(place, spelling, way, shape): every spelling at every place by topk, and by another way;
    those take turns, as shapes do. Or everything."""
    found = []
    for i, (name, place) in enumerate(product(MEANS, PLACES[:-1])):
        if name in NEIGHBOURS and place not in ("patches", "tokens"):
            continue
        for k, way in enumerate(WAYS if ALL else ("topk", WAYS[1 + i % 4])):
            for shape in EVERY if ALL else (SHAPES[(i + i // 4 + k) % len(SHAPES)],):
                found.append((place, name, way, Shape(place, *shape)))
    return found


def ids(value: object) -> str | None:
    if not isinstance(value, Shape):
        return None
    batch = value.batch or "free"
    return f"p{value.prefix}-{value.rows}x{value.rows}-b{batch}"


@pytest.mark.parametrize(("place", "name", "way", "shape"), cases(), ids=ids)
def test_spellings_reduce_alike(
    place: str,
    name: str,
    way: str,
    shape: Shape,
    cache: Path,
    tmp_path: Path,
    known: dict[tuple[Shape, str], Arrays],
) -> None:
    plain, path = exported(shape, cache), tmp_path / "model.onnx"
    try:
        found = reduced(respell(plain, MEANS[name]), shape, way, path)
    except UsageError as error:
        if not refusal(name, way) or not re.search(refusal(name, way), str(error)):
            raise
        return
    if name in NEIGHBOURS and way.endswith("restored"):
        rows = torch.from_numpy(found["tokens"].astype(np.float64))
        mean = rows[:, shape.tokens - shape.averaged :].mean(1)
        close(found, {"logits": spelled(shape).double().head(mean).numpy()})
        return
    if (shape, way) not in known:
        known[shape, way] = reduced(plain, shape, way, path)
    close(found, known[shape, way])


# ---- as PyTorch itself writes them ---------------------------------------------------------------


class Written(nn.Module):
    """The model with its last mean spelled in PyTorch."""

    def __init__(self, shape: Shape, spelling: Any) -> None:
        super().__init__()
        self.inner = spelled(shape)
        self.inner.average = _Average(spelling)  # type: ignore[assignment]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        inner: SpelledViT = self.inner
        return inner(image)


class _Average(nn.Module):
    def __init__(self, spelling: Any) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor, size: None = None, keepdim: bool = False) -> Tensor:
        found: Tensor = self.spelling(x)
        return found


def _masked(x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[:2], dtype=torch.long)[..., None].expand(x.shape).float()
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


TORCH: Mapping[str, Any] = {
    "sum-over-number": lambda x: x.sum(1) / int(x.shape[1]),
    "sum-over-shape": lambda x: x.sum(1) / x.shape[1],
    "einsum": lambda x: torch.einsum("bnc->bc", x) / x.shape[1],
    "ones": lambda x: (torch.ones(x.shape[0], 1, x.shape[1]) @ x).squeeze(1) / x.shape[1],
    "ones-for-all": lambda x: (torch.ones(1, 1, x.shape[1]) @ x).squeeze(1) / x.shape[1],
    "counted-ones": lambda x: x.sum(1) / torch.ones(x.shape[1]).sum(),
    "masked": _masked,
    "pooled": lambda x: nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(-1),
    "linear": lambda x: nn.functional.linear(
        x.transpose(1, 2), torch.full((1, x.shape[1]), 1 / x.shape[1])
    ).squeeze(-1),
}


@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("name", TORCH)
def test_pytorch_spells_it(
    name: str,
    batch: int | None,
    cache: Path,
    tmp_path: Path,
    known: dict[tuple[Shape, str], Arrays],
) -> None:
    shape, path = Shape("patches", 1, batch=batch), tmp_path / "model.onnx"
    plain = exported(shape, cache)
    torch.onnx.export(
        Written(shape, TORCH[name]).eval(),
        (torch.from_numpy(images(shape)),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits", "tokens"],
        dynamic_axes=None if batch else {"image": {0: "batch"}},
    )
    model = onnx.load(path)
    for way in WAYS if ALL else WAYS[:3]:
        if (shape, way) not in known:
            known[shape, way] = reduced(plain, shape, way, tmp_path / "plain.onnx")
        close(reduced(model, shape, way, path), known[shape, way])


# ---- masks that hide something -------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["stored", "given"])
@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("prefix", [0, 5])
def test_a_mask_is_gathered_before_it_is_counted(
    prefix: int, batch: int | None, given: bool, cache: Path, tmp_path: Path
) -> None:
    """Every third patch is hidden: the mean is over those that are left and shown."""
    shape, path = Shape("patches", prefix, batch=batch), tmp_path / "model.onnx"
    shown = np.ones((2, shape.averaged), np.float32)
    shown[:, ::3] = 0
    model = respell(exported(shape, cache), MEANS["mask_given" if given else "mask_constant"])
    fed = feed(model, shape)
    if given:
        shown[1] = np.roll(shown[1], 1)
        fed[MASK] = shown
    else:
        (stored,) = (t for t in model.graph.initializer if list(t.dims) == [1, shape.averaged, 1])
        stored.CopyFrom(onnx.numpy_helper.from_array(shown[:1, :, None], stored.name))
    path.write_bytes(model.SerializeToString())
    made = pipeline.reduce(path, keep=KEEP, method="topk")
    found = infer(to_onnx(made.graph), fed)
    kept = found["token_index"][:, prefix:] - prefix
    weight = np.take_along_axis(shown, kept, axis=1)[..., None].astype(np.float64)
    assert 0 < weight.sum() < weight.size
    patches = found["tokens"][:, prefix:].astype(np.float64)
    pooled = torch.from_numpy((patches * weight).sum(1) / weight.sum(1))
    close(found, {"logits": spelled(shape).double().head(pooled).numpy()})


def test_without_a_mean_there_is_nothing_to_respell(cache: Path) -> None:
    model = respell(exported(Shape("patches"), cache), MEANS["sum_over_n"])
    with pytest.raises(ValueError, match="no mean"):
        respell(model, MEANS["sum_over_n"])
