"""Rules of interpolation against PyTorch's `interpolate`."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.passes.resize.rules import RULES, resampled


@pytest.mark.parametrize("sizes", [(16, 12), (16, 9), (7, 5), (12, 16), (32, 8)])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_pytorchs(rule: str, sizes: tuple[int, int]) -> None:
    import torch
    from torch.nn import functional as F

    old, new = sizes
    kind, _, how = rule.partition("-")
    values = np.random.default_rng(0).standard_normal((1, 2, old, old))
    tensor = torch.tensor(values)
    if how == "offset":
        factor = (new + 0.1) / old
        wanted = F.interpolate(tensor, scale_factor=(factor, factor), mode=kind)
    else:
        wanted = F.interpolate(
            tensor,
            size=(new, new),
            mode=kind,
            align_corners=how == "corners",
            antialias=how == "antialias",
        )
    found = resampled(resampled(values, 2, new, rule), 3, new, rule)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-12)
