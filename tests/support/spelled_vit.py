"""A tiny ViT that takes means over its tokens, and the same in PyTorch with fewer tokens inside.

`SpelledViT.forward` with a `Cut` is what a reduced model must compute: the tokens leave inside the
model, and every mean is taken over those that are left (weighted by size where tokens were merged).
Which tokens leave is not decided here: it is what the reduced model reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracles.choices import attn_score, cls_score
from tests.oracles.stream import gather
from tests.oracles.weights import stir

WIDTH, HEADS, DEPTH, PATCH, CLASSES = 32, 4, 3, 8, 7

#: Where tokens are averaged: patches behind the last block, all tokens there, all tokens before
#: each MLP (the mean is subtracted, or it gates), or their standard deviation with N - 1.
Place = Literal["patches", "tokens", "centre", "gate", "std"]
PLACES: tuple[Place, ...] = ("patches", "tokens", "centre", "gate", "std")


@dataclass(frozen=True)
class Shape:
    """prefix tokens, then rows x rows patches; batch: fixed, or None where it is free."""

    place: Place
    prefix: int = 1
    rows: int = 4
    batch: int | None = 2

    @property
    def tokens(self) -> int:
        return self.prefix + self.rows**2

    @property
    def averaged(self) -> int:
        """Tokens that are averaged."""
        return self.tokens - (self.prefix if self.place in ("patches", "std") else 0)


@dataclass(frozen=True)
class Cut:
    """Tokens leave after the attention of `block`.

    Attributes:
        kind: dropped (`topk`), joined into one that is the sum of score x token (`fuse`), or merged
            into their owners (`merge`).
        index: [B, K], prefix included, the tokens that stay; -1 for the one made by `fuse`.
        owner: [B, N] -> K, for `merge`.
    """

    block: int
    kind: Literal["topk", "fuse", "merge"]
    index: Tensor
    owner: Tensor | None = None


class Mean(nn.Module):
    """Mean over axis 1, by itself so that its node is easily found."""

    def forward(self, x: Tensor, size: Tensor | None = None, keepdim: bool = False) -> Tensor:
        if size is None:
            return x.mean(1, keepdim=keepdim)
        return (x * size[..., None]).sum(1, keepdim=keepdim) / size.sum(1)[
            (..., None, None) if keepdim else (..., None)
        ]


class SpelledBlock(nn.Module):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.gate, self.average = nn.Linear(WIDTH, WIDTH), Mean()

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, c // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attend(self, x: Tensor, size: Tensor | None) -> Tensor:
        q, k, v = self.heads(x)
        logits = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        if size is not None:
            logits = logits + size.log()[:, None, None]
        context = (logits.softmax(-1) @ v).transpose(1, 2)
        return x + self.proj(context.reshape(x.shape))

    def feed(self, x: Tensor, size: Tensor | None) -> Tensor:
        y = self.norm2(x)
        if self.place == "centre":
            y = y - self.average(y, size, keepdim=True)
        if self.place == "gate":
            y = y * self.gate(self.average(y, size, keepdim=True)).sigmoid()
        return x + self.down(nn.functional.gelu(self.up(y)))


class SpelledViT(nn.Module):
    """Images [B, 3, S, S] -> (logits [B, classes], tokens [B, N, C])."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.special = nn.Parameter(torch.zeros(1, shape.prefix, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, shape.tokens, WIDTH))
        self.blocks = nn.ModuleList(SpelledBlock(shape.place) for _ in range(DEPTH))
        self.norm, self.head, self.average = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES), Mean()

    def forward(self, images: Tensor, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        x = self.stem(images).flatten(2).transpose(1, 2)
        if self.shape.prefix:
            x = torch.cat([self.special.expand(x.shape[0], -1, -1), x], 1)
        x, size = x + self.places, None
        for i, block in enumerate(self.blocks):
            before, x = x, block.attend(x, size)
            if cut is not None and cut.block == i:
                x, size = self.leave(cut, block, before, x)
            x = block.feed(x, size)
        x = self.norm(x)
        return self.head(self.pooled(x, size)), x

    def pooled(self, x: Tensor, size: Tensor | None) -> Tensor:
        first = self.shape.prefix if self.shape.place in ("patches", "std") else 0
        part = x[:, first:]
        weight = None if size is None else size[:, first:]
        mean = self.average(part, weight, keepdim=self.shape.place == "std")
        if self.shape.place != "std":
            return mean
        spread = part - mean
        count = part.shape[1] if weight is None else self.shape.averaged
        return (self.average(spread * spread, weight) * (count / (count - 1))).sqrt()

    def leave(
        self, cut: Cut, block: SpelledBlock, before: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return what is left, and the size of each where tokens were merged."""
        if cut.kind == "merge":
            assert cut.owner is not None
            member = nn.functional.one_hot(cut.owner, cut.index.shape[1]).to(x).transpose(1, 2)
            size = member.sum(-1)
            return member @ x / size[..., None], size
        if cut.kind == "topk":
            return gather(x, cut.index), None
        p, kept = self.shape.prefix, cut.index[:, :-1]
        q, k, _ = block.heads(before)
        score = (cls_score if p else attn_score)(q, k, (WIDTH // HEADS) ** -0.5, p)
        dropped = torch.ones_like(x[..., 0]).scatter(1, kept, 0.0)[:, p:]
        made = (score * dropped).unsqueeze(1) @ x[:, p:]
        return torch.cat([gather(x, kept), made], 1), None


def spelled(shape: Shape) -> SpelledViT:
    """The model with weights that make mistakes show, the same every time."""
    module = SpelledViT(shape).eval().requires_grad_(False)
    stir(module, seed=11)
    return module


def write(shape: Shape, path: Path) -> None:
    """A TorchScript export: `image` -> `logits`, `tokens`."""
    torch.onnx.export(
        spelled(shape),
        (torch.from_numpy(images(shape)),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits", "tokens"],
        dynamic_axes=None if shape.batch else {"image": {0: "batch"}},
    )


def images(shape: Shape, seed: int = 5) -> np.ndarray[Any, Any]:
    """[2, 3, S, S] f32."""
    rng = np.random.default_rng(seed)
    side = PATCH * shape.rows
    return rng.standard_normal((2, 3, side, side)).astype(np.float32)


def inside(
    shape: Shape, cut: Mapping[str, Any], reported: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits and tokens, in float64, where the tokens leave inside the model.

    Args:
        cut: one entry of a schedule's `reductions`, at `attn:I`.
        reported: `token_index`, and for merging `token_owner`, of the reduced model.
    """
    owner = reported.get("token_owner")
    done = Cut(
        int(str(cut["site"]).removeprefix("attn:")),
        cut["reducer"]["name"],
        torch.from_numpy(reported["token_index"]),
        None if owner is None else torch.from_numpy(owner),
    )
    logits, tokens = spelled(shape).double()(torch.from_numpy(images(shape)).double(), done)
    return logits.numpy(), tokens.numpy()
