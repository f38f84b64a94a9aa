"""Parts of the networks of `foreign`: embeddings, attentions of many kinds, blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH, HEADS, IMAGE, PATCH, CLASSES = 24, 2, 24, 6, 5
TOKENS = (IMAGE // PATCH) ** 2


class Embed(nn.Module):
    """[B, 3, S, S] to [B, T, C], with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, TOKENS, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Multi-head attention of `x` over `other`; `mix` has the last word on the probabilities."""

    def __init__(self, mix: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mix = mix or (lambda logits: logits.softmax(-1))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other

        def heads(t: Tensor) -> Tensor:
            return t.reshape(t.shape[0], t.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = heads(self.q(x)), heads(self.k(other)), heads(self.v(other))
        chances = self.mix(q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5)
        return self.out((chances @ v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Sequential):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """Pre-norm; `attend` and `feed` replace the attention and the MLP."""

    def __init__(self, attend: nn.Module | None = None, feed: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.feed = attend or Attention(), feed or Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Encoder(nn.Module):
    """Embedding, blocks, mean over tokens, classes."""

    def __init__(self, *blocks: nn.Module, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = embed or Embed()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(image)).mean(1))


class OverTokens(nn.Module):
    """A module over the token axis instead of the features (MLP-Mixer)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class OverGrid(nn.Module):
    """A module over [B, C, H, W] (a convolution in the MLP, pooling as attention)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        side = IMAGE // PATCH
        grid = x.transpose(1, 2).reshape(x.shape[0], WIDTH, side, side)
        return self.inner(grid).flatten(2).transpose(1, 2)


class CrossCovariance(nn.Module):
    """XCiT: attention between channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.permute(0, 3, 1, 2).reshape(x.shape))


class LinearAttention(nn.Module):
    """relu(Q)·(relu(K)ᵀ·V): the tokens are summed before the queries come."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).relu(), self.k(x).relu(), self.v(x)
        return q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1)[..., None] + 1.0)


class Windows(nn.Module):
    """Attention inside windows of 2 x 2, rolled by `shift` (Swin)."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.attend, self.shift = Attention(), shift

    def forward(self, x: Tensor) -> Tensor:
        side = IMAGE // PATCH
        grid = x.reshape(-1, side, side, WIDTH)
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), (1, 2))
        cut = grid.reshape(-1, side // 2, 2, side // 2, 2, WIDTH).transpose(2, 3)
        done = self.attend(cut.reshape(-1, 4, WIDTH)).reshape(cut.shape)
        grid = done.transpose(2, 3).reshape(grid.shape)
        if self.shift:
            grid = torch.roll(grid, (self.shift, self.shift), (1, 2))
        return grid.reshape(x.shape)


class Strided(nn.Module):
    """Keys and values from a coarser grid (PVT)."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.attend = nn.Conv2d(WIDTH, WIDTH, 2, 2), Attention()

    def forward(self, x: Tensor) -> Tensor:
        side = IMAGE // PATCH
        grid = x.transpose(1, 2).reshape(-1, WIDTH, side, side)
        return self.attend(x, self.coarse(grid).flatten(2).transpose(1, 2))


class TokenNorm(nn.Module):
    """BatchNorm over the token axis as its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Recurrent(nn.Module):
    """Patches read one after the other."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]) -> None:
        super().__init__()
        self.embed, self.rnn = Embed(), kind(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(image))[0][:, -1])
