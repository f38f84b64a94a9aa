"""`GlyphViT`: a plain, small vision transformer that two CPU cores can train.

56x56 RGB -> two stride-2 3x3 convolutions (BatchNorm, GELU) -> 14x14 = 196 patch tokens, a CLS
token in front (197, as ViT-*/16 at 224), learned position embeddings, six pre-norm blocks of width
96, and two heads: `logits` from CLS and `patch_logits` from every patch token. A plain 4x4 patch
embedding learns far more slowly here; the stem is what makes training on two cores practical.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcompile.models.glyphs.data import CLASSES, IMAGE_SIZE, PATCH_CLASSES


@dataclass(frozen=True)
class GlyphConfig:
    """Sizes of a `GlyphViT`; the defaults are those of the committed weights."""

    image_size: int = IMAGE_SIZE
    width: int = 96
    depth: int = 6
    heads: int = 3
    mlp_ratio: int = 2
    classes: int = CLASSES
    patch_classes: int = PATCH_CLASSES

    @property
    def grid(self) -> int:
        """Patches along one side: the stem divides the image by four."""
        return self.image_size // 4


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, C] -> [B, N, C], with q, k and v in one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.proj(x)
        return out


class Block(nn.Module):
    """One pre-norm transformer layer, [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GlyphViT(nn.Module):
    """Images [B, 3, S, S] -> (`logits` [B, classes], `patch_logits` [B, T, patch_classes])."""

    def __init__(self, config: GlyphConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GlyphConfig()
        width, half = config.width, config.width // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.classes)
        self.patch_head = nn.Linear(width, config.patch_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> tokens [B, 1 + T, C], CLS first, patches in raster order."""
        patches = self.stem(images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, 1 + T, C] -> both outputs."""
        x = self.norm(x)
        return self.head(x[:, 0]), self.patch_head(x[:, 1:])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.heads(x)
