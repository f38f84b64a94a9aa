"""A ViT whose attention has a table for every pair of tokens, as BEiT's relative positions, and two
whose attention is masked: by distance, and by what the image shows.

The plain encoders have nothing beside the stream that carries tokens once positions are added;
these do, so they are what shows a mask or table that was not gathered.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiasedBlock(nn.Module):
    """Pre-norm block with logits q k^T / sqrt(d) + bias, bias [H, N, N]."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.bias = nn.Parameter(torch.zeros(heads, tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0))
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class BiasedViT(nn.Module):
    """Images [B, 3, S, S] -> (logits [B, 7], tokens [B, N, C]), CLS first."""

    def __init__(self, size: int = 48, patch: int = 8, width: int = 40, heads: int = 5) -> None:
        super().__init__()
        tokens = (size // patch) ** 2 + 1
        self.stem = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(BiasedBlock(width, heads, tokens) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def embed(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0]), x


class MaskedBlock(BiasedBlock):
    """Attention over the keys that `mask` [B, 1, N, N] (True: seen) leaves."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__(width, heads, tokens)
        del self.bias

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class MaskedViT(BiasedViT):
    """Patches see those at most two rows and columns away; CLS sees all, and all see CLS.

    dark: patches whose pixels average below -0.06 are seen by nobody either. A second argument
    [B, P] names patches that are seen: of the others, nothing.
    """

    def __init__(self, size: int = 48, patch: int = 8, dark: bool = False) -> None:
        super().__init__(size, patch)
        width, heads, side = 40, 5, size // patch
        self.blocks = nn.ModuleList(MaskedBlock(width, heads, side**2 + 1) for _ in range(4))
        self.patch, self.dark = patch, dark
        place = torch.arange(side**2)
        rows, columns = place // side, place % side
        near = torch.ones(side**2 + 1, side**2 + 1, dtype=torch.bool)
        near[1:, 1:] = ((rows[:, None] - rows).abs() <= 2) & (
            (columns[:, None] - columns).abs() <= 2
        )
        self.near: Tensor
        self.register_buffer("near", near)

    def mask(self, images: Tensor, seen: Tensor | None = None) -> Tensor:
        """[1 or B, 1, N, N], True where a row sees a column."""
        near = self.near[None, None]
        if self.dark:
            seen = F.avg_pool2d(images, self.patch).mean(dim=1).flatten(1) > -0.06
        if seen is None:
            return near
        return near & F.pad(seen, (1, 0), value=True)[:, None, None, :]

    def forward(self, images: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mask = self.mask(images, seen)
        x = self.embed(images)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return self.head(x[:, 0]), x
