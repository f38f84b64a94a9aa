"""The trained model of our own: a small vision transformer that adds up digits in clutter.

`load()` gives the trained `GlyphViT`, `untrained()` one with random weights; `data` renders the
scenes, `evaluate` scores any implementation on held-out ones, `train` reproduces the weights.
Importing this package imports neither torch nor Pillow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.core.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from tcompile.models.glyphs.model import GlyphViT

WEIGHTS = Path(__file__).parent / "glyphs.safetensors"
"""The committed weights, fp32."""

__all__ = ["WEIGHTS", "load", "untrained"]


def load(path: Path = WEIGHTS) -> GlyphViT:
    """The trained model in evaluation mode.

    It maps images [B, 3, 56, 56], preprocessed as `data.preprocess` does, to (`logits` [B, 25],
    `patch_logits` [B, 196, 11]).

    Raises:
        MissingExtraError: torch or safetensors is not installed.
        ModelError: `path` is not a weights file of this model.
    """
    net = untrained()
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("safetensors", "export", "loading the glyphs weights") from None
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"not weights of the glyphs model: {error}", where=str(path)) from None
    return net


def untrained(*, seed: int = 0) -> GlyphViT:
    """Return a model with random weights in evaluation mode.

    The caller's torch random state is left as it was.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "export", "the glyphs model") from None
    from tcompile.models.glyphs.model import GlyphViT

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GlyphViT().eval()
