"""A backbone as detectors and segmenters use it: what several blocks of a ViT give, as maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tests.oracles.adapter_timm import timm
from tests.oracles.stream import Encoder, Output, Stream


class MapViT(nn.Module):
    """timm's ViT, read after several blocks.

    blocks: which.  as_maps: [B, C, H, W], otherwise [B, H*W, C].
    """

    def __init__(self, size: int, blocks: Sequence[int], *, as_maps: bool) -> None:
        super().__init__()
        from timm import create_model

        self.vit: Any = create_model(
            "vit_tiny_patch16_224",
            img_size=size,
            patch_size=8,
            depth=max(blocks) + 1,
            embed_dim=32,
            num_heads=2,
            num_classes=0,
        )
        self.blocks, self.as_maps = tuple(blocks), as_maps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """One tensor a block, normed."""
        found = self.vit.forward_intermediates(
            image,
            indices=list(self.blocks),
            norm=True,
            output_fmt="NCHW" if self.as_maps else "NLC",
            intermediates_only=True,
        )
        return tuple(found)


def maps(model: MapViT) -> Encoder:
    """The adapter."""
    base = timm(model.vit)
    side = model.vit.patch_embed.grid_size[0]

    def output(tap: Tensor) -> Output:
        x = base.norm(tap)[:, base.prefix :]
        if not model.as_maps:
            return Output(x, base.prefix, tap=True)
        return Output(x.unflatten(1, (side, side)).permute(0, 3, 1, 2), tap=True)

    def head(stream: Stream) -> tuple[Output, ...]:
        return tuple(map(output, stream.taps))

    # The class token is dropped: nothing says what it has learnt.
    return replace(base, head=head, cls=False, taps=model.blocks)
