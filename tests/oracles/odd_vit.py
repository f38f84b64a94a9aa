"""A ViT whose parts stand where those of the well-known models do not: no library has these, and an
encoder that nobody has seen yet may.

* class token behind the patches, or registers on both sides;
* positions that join the stream in every block, or only in the last;
* one-dimensional rotary positions over all tokens, the class token included;
* residual branches and the stream itself scaled, otherwise in every block;
* attention and MLP side by side, each with its own norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 40, 5, 4


@dataclass(frozen=True)
class Odd:
    """before, after: special tokens on each side of the patches; the first of them is read.
    positions: `once` (at the start), `each` (on entering every block) or `late` (the last only).
    rotary, scaled, parallel: see above."""

    before: int = 1
    after: int = 0
    positions: str = "once"
    rotary: bool = False
    scaled: bool = False
    parallel: bool = False


class OddBlock(nn.Module):
    """keep, gain: what the stream and the branches are multiplied by."""

    def __init__(self, plan: Odd, number: int) -> None:
        super().__init__()
        self.plan = plan
        self.keep = 1.0 - 0.1 * number if plan.scaled else 1.0
        self.gain = 0.5 + 0.25 * number if plan.scaled else 1.0
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.plan.rotary:
            q, k = (y * cos + torch.cat([-y[..., 4:], y[..., :4]], -1) * sin for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(y.transpose(1, 2).reshape(batch, tokens, width)) * self.gain
        if self.plan.parallel:
            return x * self.keep + y + self.mlp(self.norm2(x)) * self.gain
        x = x * self.keep + y
        return x * self.keep + self.mlp(self.norm2(x)) * self.gain


class OddViT(nn.Module):
    """Images [B, 3, S, S] -> (logits [B, 7], tokens [B, N, C] with the special ones)."""

    def __init__(self, plan: Odd, size: int = 48, patch: int = 8) -> None:
        super().__init__()
        self.plan = plan
        tokens = (size // patch) ** 2 + plan.before + plan.after
        self.stem = nn.Conv2d(3, WIDTH, patch, stride=patch)
        self.before = nn.Parameter(torch.zeros(1, plan.before, WIDTH))
        self.after = nn.Parameter(torch.zeros(1, plan.after, WIDTH))
        tables = {"once": 1, "each": DEPTH, "late": 1}[plan.positions]
        self.places = nn.Parameter(torch.zeros(tables, tokens, WIDTH))
        self.blocks = nn.ModuleList(OddBlock(plan, i) for i in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 7)
        angles = torch.arange(tokens)[:, None] * 0.5 ** torch.arange(4)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def embed(self, images: Tensor) -> Tensor:
        patches = self.stem(images).flatten(2).transpose(1, 2)
        count = patches.shape[0]
        special = self.before.expand(count, -1, -1), self.after.expand(count, -1, -1)
        x = torch.cat([special[0], patches, special[1]], dim=1)
        return x + self.places[0] if self.plan.positions == "once" else x

    def late(self, block: int) -> Tensor | None:
        """[N, C] to add on entering a block."""
        if self.plan.positions == "each":
            return self.places[block]
        return self.places[0] if (self.plan.positions, block) == ("late", DEPTH - 1) else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            late = self.late(i)
            x = block(x if late is None else x + late, self.cos, self.sin)
        x = self.norm(x)
        cls = 0 if self.plan.before else x.shape[1] - self.plan.after
        return self.head(x[:, cls]), x
