"""Properties of every preset, whatever it computes: counts, owners, sizes, prefix, order, ties, and
numbers too large for half precision.

All presets of the registry, on tiny models whose blocks leave the stream as it is (`inert`), so
that every row of the output can be told from where it came.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from tcompile.methods.presets import PRESETS, Preset
from tests.support.half import run_as_written
from tests.support.preset_models import (
    SPEC,
    Made,
    dense,
    dense_tokens,
    made,
    made_loud,
    reduced,
    some_images,
)

EVERY = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


def keeps_order(found: Made) -> bool:
    """Return whether every reducer leaves tokens in their order; those that do not say so."""
    rows = found.schedule.to_json()["reductions"]
    parts = [row["reducer"] for row in rows]
    parts += [step["reducer"] for part in parts for step in part.get("steps", ())]
    split = [p.get("split", "alternate") for p in parts if p["name"] == "merge"]
    return "alternate" not in split and not {"contextual", "windows"} & {p["name"] for p in parts}


def discounted(found: Made) -> bool:
    """Return whether sizes grow by s·cos, and those of tokens pruned before are gone (DiffRate)."""
    return "similarity" in json.dumps(found.schedule.to_json())


@EVERY
def test_counts_are_those_of_the_schedule(preset: Preset) -> None:
    """Counts of the tokens that each block's projections and MLPs really see."""
    found = made(preset)
    own = {node.name for node in dense(found.kind)[0].graph.node}
    model = onnx.shape_inference.infer_shapes(found.model, strict_mode=True, data_prop=True)
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in model.graph.value_info
    }
    widths: dict[int, list[int]] = {SPEC.width * 3: [], SPEC.width * SPEC.mlp_ratio: []}
    for node in model.graph.node:
        by_weight = node.op_type == "MatMul" and node.input[1] in weights
        if by_weight and node.name in own:
            shape = shapes[node.output[0]]
            if shape[-1] in widths:
                widths[shape[-1]].append(shape[-2])
    rows = found.schedule.tokens_per_block()
    assert widths[SPEC.width * 3] == [row.attention for row in rows]
    assert widths[SPEC.width * SPEC.mlp_ratio] == [row.mlp for row in rows]
    tokens = found.run(some_images(found.spec, 2))["tokens"]
    assert tokens.shape[1] == found.schedule.final + found.spec.prefix


@EVERY
def test_prefix_order_and_index(preset: Preset) -> None:
    found = made(preset)
    images = some_images(found.spec, 3)
    out, whole = found.run(images), dense_tokens(found.kind, images)
    p = found.spec.prefix
    np.testing.assert_allclose(out["tokens"][:, :p], whole[:, :p], atol=1e-5)
    index = out.get("token_index")
    if index is None:
        assert found.schedule.final == found.spec.patches
        return
    assert (index[:, :p] == np.arange(p)).all()
    for row in index[:, p:]:
        real = row[row >= 0]
        assert len(set(real)) == len(real)
        assert len(real) == 0 or (p <= real.min() and real.max() < found.spec.tokens)
        if keeps_order(found):
            assert (np.diff(real) > 0).all()


@EVERY
def test_an_image_is_what_it_is_alone(preset: Preset) -> None:
    """No score or count depends on the others of a batch."""
    found = made(preset)
    images = some_images(found.spec, 3)
    images[1] *= 10
    together = found.run(images)
    for row in range(3):
        alone = found.run(images[row : row + 1])
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][row], value[0], atol=1e-4, err_msg=name)


@EVERY
def test_owners_and_sizes(preset: Preset) -> None:
    found = made(preset)
    out = found.run(some_images(found.spec, 3))
    p = found.spec.prefix
    if "token_size" not in out:
        return
    owner, size, index = out["token_owner"], out["token_size"], out["token_index"]
    assert owner.shape == (3, found.spec.tokens)
    assert owner.min() == 0
    assert owner.max() < index.shape[1]
    assert (owner[:, :p] == np.arange(p)).all()
    assert (size[:, :p] == 1).all()
    exact = not discounted(found)
    if exact:
        np.testing.assert_allclose(size.sum(1), found.spec.tokens, rtol=1e-6)
    for b in range(3):
        counts = np.bincount(owner[b], minlength=index.shape[1])
        assert (counts > 0).all()
        if exact:
            assert (counts == size[b]).all()
        real = index[b] >= 0
        assert (owner[b][index[b][real]] == np.flatnonzero(real)).all()


@EVERY
def test_every_token_comes_back_as_its_owner(preset: Preset) -> None:
    """Restored, each row is one of those that were left; of a token that is left, its own."""
    found = made(preset)
    restored = reduced(found.kind, found.schedule, "restored")
    images = some_images(found.spec, 2)
    out, whole = found.run(images), restored.run(images)["tokens"]
    assert whole.shape == (2, found.spec.tokens, found.spec.width)
    if "token_index" not in out:
        np.testing.assert_allclose(out["tokens"], whole, atol=1e-5)
        return
    for b in range(2):
        gaps = np.abs(whole[b][:, None] - out["tokens"][b][None]).max(-1)
        assert gaps.min(1).max() < 1e-5
        real = out["token_index"][b] >= 0
        own = gaps[out["token_index"][b][real], np.flatnonzero(real)]
        assert own.max() < 1e-5


@EVERY
@pytest.mark.parametrize("kind", ["constant", "halves"])
def test_ties(preset: Preset, kind: str) -> None:
    """Patches that are all the same, or of two kinds: numbers stay numbers, no token twice."""
    found = made(preset, flat=True)
    images = np.full_like(some_images(found.spec, 2), 0.5)
    if kind == "halves":
        images[:, :, : found.spec.image // 2] = -0.5
    out = found.run(images)
    assert np.isfinite(out["tokens"]).all()
    for row in out.get("token_index", np.zeros((0, 1)))[:, found.spec.prefix :]:
        real = row[row >= 0]
        assert len(set(real)) == len(real)
    if "token_size" in out:
        assert np.isfinite(out["token_size"]).all()
        assert (out["token_size"] > 0).all()


@EVERY
def test_large_numbers_in_half_precision(preset: Preset) -> None:
    """|x| = 300 and tokens as large as the preset can make of 256: x·s would overflow."""
    half = made_loud(preset)
    images = some_images(half.spec, 1)
    found, whole = run_as_written(half.model, {"image": images}), dense_tokens(half.kind, images)
    assert np.isfinite(found["tokens"]).all()
    if "token_size" in found:
        assert np.isfinite(found["token_size"]).all()
        one = half.schedule.final == 1 and not discounted(half)
        assert not one or found["token_size"].max() > 218
    # The last norm takes the size away.
    assert np.abs(found["tokens"]).max() < 2 * np.abs(whole).max()
