"""`return`: what a token that had left is when it comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.reducing import Tokens, reduced


def left(prefix: int, seed: int = 0) -> Tokens:
    """Six tokens in two rows of three, left of 24 in four rows of six; each stands for a cell."""
    rng = np.random.default_rng(seed)
    cell = np.arange(24).reshape(4, 6)
    owner = (cell // 6 // 2 * 3 + cell % 6 // 2).reshape(-1)
    return Tokens(
        rng.normal(size=(3, prefix + 6, 8)).astype(np.float32),
        rng.normal(size=(3, prefix + 6, 4)).astype(np.float32),
        prefix=prefix,
        grid=(2, 3),
        whole=(4, 6),
        index=np.tile(np.array([0, 2, 4, 12, 14, 16], np.int64), (3, 1)),
        owner=np.tile(owner.astype(np.int64), (3, 1)),
    )


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_upsampled_as_images_are(prefix: int) -> None:
    given = left(prefix)
    found = reduced("return", given, 24, fill="upsample").x
    image = torch.from_numpy(given.patches).transpose(1, 2).reshape(3, 8, 2, 3)
    large = torch.nn.functional.interpolate(
        image, size=(4, 6), mode="bilinear", align_corners=False
    )
    expected = large.reshape(3, 8, 24).transpose(1, 2).numpy()
    np.testing.assert_allclose(found[:, prefix:], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[:, :prefix], given.x[:, :prefix])


@pytest.mark.parametrize("fill", ["owner", "mean", "zero"])
@pytest.mark.parametrize("prefix", [0, 1])
def test_filled(fill: str, prefix: int) -> None:
    given = left(prefix)
    assert given.index is not None
    assert given.owner is not None
    found = reduced("return", given, 24, fill=fill).x[:, prefix:]
    for n in range(3):
        expected = {
            "owner": given.patches[n][given.owner[n]],
            "mean": np.repeat(given.patches[n].mean(0)[None], 24, 0),
            "zero": np.zeros((24, 8), np.float32),
        }[fill]
        if fill != "owner":
            expected[given.index[n]] = given.patches[n]
        np.testing.assert_allclose(found[n], expected, rtol=0, atol=1e-6)
