"""Small models with several encoders, passes or kinds of attention, which drop tokens themselves.

Every encoder takes `kept`, [B, K] positions among all its tokens, prefix included, and drops the
others after the attention of block `after`: the oracle of a reduced model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tests.oracles.weights import stir

Kept = Tensor | None
Arrays = dict[str, np.ndarray[Any, Any]]


def take(x: Tensor, index: Tensor) -> Tensor:
    """The rows [B, K] of x [B, N, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Attend(nn.Module):
    """Attention of x to `memory`, itself by default."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory

        def split(t: Tensor) -> Tensor:
            return t.reshape(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(memory)), split(self.v(memory))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention and MLP; `attentions` of them side by side, one after the other added."""

    def __init__(self, width: int, heads: Sequence[int] = (4,)) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attentions = nn.ModuleList(Attend(width, h) for h in heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, kept: Kept = None) -> Tensor:
        normed = self.norm(x)
        for attention in self.attentions:
            x = x + attention(normed)
        if kept is not None:
            x = take(x, kept)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A small ViT: [B, 3, S, S] → its tokens after the last norm; `last` fixed ones at the end."""

    def __init__(
        self, size: int = 32, patch: int = 8, width: int = 32, depth: int = 3, prefix: int = 1,
        last: int = 0, heads: Sequence[int] = (4,),
    ) -> None:  # fmt: skip
        super().__init__()
        count = (size // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.first = nn.ParameterList([torch.zeros(1, 1, width) for _ in range(prefix)])
        self.last = nn.Parameter(torch.zeros(1, last, width)) if last else None
        self.places = nn.Parameter(torch.zeros(1, prefix + count + last, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def tokens(self, image: Tensor) -> Tensor:
        """Before the first block."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        parts = [*self.first, x] + ([] if self.last is None else [self.last])
        batch = image.shape[0]
        x = torch.cat([p.expand(batch, -1, -1) if p is not x else p for p in parts], 1)
        return x + self.places

    def forward(self, image: Tensor, kept: Kept = None, after: int = 1) -> Tensor:
        x = self.tokens(image)
        for i, block in enumerate(self.blocks):
            x = block(x, kept if i == after else None)
        return self.norm(x)


class Model(nn.Module):
    """A model whose forward takes images and then `kept` of each tower, by name."""

    inputs: Mapping[str, tuple[int, ...]] = {"left": (3, 32, 32), "right": (3, 32, 32)}


class Pair(Model):
    """One encoder run on two images; classes and the tokens themselves."""

    def __init__(self, tokens: bool = False, **plan: Any) -> None:
        super().__init__()
        self.encoder = Encoder(**plan)
        self.head, self.tokens = nn.Linear(32, 5), tokens

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        kept = kept or {}
        a, b = self.encoder(left, kept.get("left")), self.encoder(right, kept.get("right"))
        found = (self.head(a.mean(1)), self.head(b.mean(1)))
        return (*found, a, b) if self.tokens else found


def stirred(module: nn.Module, seed: int = 3) -> nn.Module:
    """With weights that make mistakes show."""
    stir(module, seed)
    return module.eval()


def export(module: nn.Module, path: Path, *, batch: bool = False, opset: int = 17, **kw: Any) -> Path:
    """Write the module as ONNX; outputs are named `out0`, `out1`, …

    Args:
        batch: free, not 1.
    """
    inputs: Mapping[str, tuple[int, ...]] = module.inputs  # type: ignore[assignment]
    images = tuple(torch.randn(1 + batch, *dims) for dims in inputs.values())
    with torch.no_grad():
        count = len(module(*images))
        names = [f"out{i}" for i in range(count)]
        free = {n: {0: "batch"} for n in [*inputs, *names]} if batch else None
        torch.onnx.export(module, images, str(path), opset_version=opset, dynamo=False,
                          input_names=list(inputs), output_names=names, dynamic_axes=free,
                          **kw)  # fmt: skip
    return path


def images_of(module: nn.Module, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Random images for every input."""
    generator = torch.Generator().manual_seed(seed)
    inputs: Mapping[str, tuple[int, ...]] = module.inputs  # type: ignore[assignment]
    return {n: torch.randn(batch, *dims, generator=generator) for n, dims in inputs.items()}


def run(model: gs.Graph | onnx.ModelProto | Path, feed: Mapping[str, Tensor]) -> Arrays:
    """The outputs of a model in ONNX Runtime."""
    if isinstance(model, gs.Graph):
        from tcompile.ir import to_onnx

        model = to_onnx(model)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    given = {i.name: feed[i.name].numpy() for i in session.get_inputs()}
    return dict(zip(names, session.run(None, given), strict=True))
