"""Small models with several encoders, passes or kinds of attention, which drop tokens themselves.

Every encoder takes `kept`, [B, K] positions among all its tokens, prefix included, and drops the
others after the attention of block `after`: the oracle of a reduced model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tests.oracles.weights import stir
from tests.support.onnx_models import plain_options, to_onnx

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

    def _split(self, t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2)

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """[B, heads, N, M]."""
        q, k = self._split(self.q(x)), self._split(self.k(memory))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        mixed = self.weights(x, memory) @ self._split(self.v(memory))
        found: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """Attention and MLP; several attentions side by side, added one by one or as their sum."""

    def __init__(self, width: int, heads: Sequence[int] = (2,), summed: bool = False) -> None:
        super().__init__()
        self.summed = summed
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attentions = nn.ModuleList(Attend(width, h) for h in heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, kept: Kept = None) -> Tensor:
        normed = self.norm(x)
        if self.summed:
            x = x + sum(attention(normed) for attention in self.attentions)
        else:
            for attention in self.attentions:
                x = x + attention(normed)
        if kept is not None:
            x = take(x, kept)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A small ViT: [B, 3, S, S] → its tokens after the last norm; `last` fixed ones at the end."""

    def __init__(
        self,
        size: int = 32,
        patch: int = 8,
        width: int = 32,
        depth: int = 2,
        prefix: int = 1,
        last: int = 0,
        heads: Sequence[int] = (2,),
        summed: bool = False,
    ) -> None:
        super().__init__()
        count = (size // patch) ** 2
        self.patches = range(prefix, prefix + count)
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.first = nn.ParameterList([torch.zeros(1, 1, width) for _ in range(prefix)])
        self.last = nn.Parameter(torch.zeros(1, last, width)) if last else None
        self.places = nn.Parameter(torch.zeros(1, prefix + count + last, width))
        self.blocks = nn.ModuleList(Block(width, heads, summed) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def tokens(self, image: Tensor) -> Tensor:
        """Before the first block."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        parts = [*self.first, x] + ([] if self.last is None else [self.last])
        batch = image.shape[0]
        x = torch.cat([p.expand(batch, -1, -1) if p is not x else p for p in parts], 1)
        return x + self.places

    def forward(self, image: Tensor, kept: Kept = None, after: int = 0) -> Tensor:
        x = self.tokens(image)
        for i, block in enumerate(self.blocks):
            x = block(x, kept if i == after else None)
        return self.norm(x)

    def scores(self, image: Tensor, readers: Sequence[int], block: int = 0) -> Tensor:
        """[B, patches]: what these tokens pay each patch in a block, on average over the heads of
        all its attentions."""
        x = self.tokens(image)
        for one in self.blocks[:block]:
            x = one(x)
        x = self.blocks[block].norm(x)
        weights = torch.cat([a.weights(x, x) for a in self.blocks[block].attentions], 1)
        rows = weights[:, :, list(readers)].mean((1, 2))
        return rows[:, list(self.patches)]


Inputs = Mapping[str, tuple[int, ...]]


class Model(nn.Module):
    """Takes images by the names of `inputs`, and `kept` for each tower by its name."""

    inputs: ClassVar[Inputs] = {"image": (3, 32, 32)}


class One(Model):
    """One encoder: classes of its first token, or of the mean where `mean`; its tokens as well
    where `tokens`."""

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Linear | None = None,
        tokens: bool = False,
        mean: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head or nn.Linear(32, 5)
        self.tokens, self.mean = tokens, mean

    def classes(self, image: Tensor, kept: Kept = None) -> tuple[Tensor, Tensor]:
        x = self.encoder(image, kept)
        return self.head(x.mean(1) if self.mean else x[:, 0]), x

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        found, x = self.classes(image, (kept or {}).get("image"))
        return (found, x) if self.tokens else (found,)


class Pair(One):
    """One encoder run on two images."""

    inputs: ClassVar[Inputs] = {"left": (3, 32, 32), "right": (3, 32, 32)}

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        kept = kept or {}
        a, x = self.classes(left, kept.get("left"))
        b, y = self.classes(right, kept.get("right"))
        return (a, b, x, y) if self.tokens else (a, b)


class Flip(One):
    """One encoder run on an image and on the image turned round."""

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        return self.classes(image)[0], self.classes(image.flip(-1))[0]


class Cameras(One):
    """One encoder run on the images of three cameras, one after the other."""

    inputs: ClassVar[Inputs] = {"cameras": (3, 3, 32, 32)}

    def forward(self, cameras: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        return tuple(self.classes(cameras[:, i])[0] for i in range(3))


class TwoEncoders(Model):
    """Two encoders of one image: other patches, another depth, one without a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Encoder(depth=3), Encoder(patch=4, depth=2, prefix=0)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        return self.head(self.first(image)[:, 0]), self.head(self.second(image).mean(1))


class GridBeside(Model):
    """Two encoders of one image, the second of which gives a grid, which needs every patch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Encoder(), Encoder(prefix=0)
        self.head, self.conv = nn.Linear(32, 5), nn.Conv2d(32, 4, 3)

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        grid = self.second(image).transpose(1, 2).reshape(-1, 32, 4, 4)
        return self.head(self.first(image)[:, 0]), self.conv(grid)


class WithText(Model):
    """An image encoder and, deeper, a text encoder."""

    inputs: ClassVar[Inputs] = {"image": (3, 32, 32), "text": (6,)}

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.words = Encoder(), nn.Embedding(50, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(5))

    def forward(self, image: Tensor, text: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = self.words((text.abs() * 5).long())
        for block in self.blocks:
            x = block(x)
        return self.encoder(image)[:, 0], x[:, -1]


class Stereo(Model):
    """Each image's tokens attend to the other's at the end."""

    inputs: ClassVar[Inputs] = Pair.inputs

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm = Encoder(), nn.LayerNorm(32)
        self.across, self.back = Attend(32, 4), Attend(32, 4)

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        kept = kept or {}
        a, b = self.encoder(left, kept.get("left")), self.encoder(right, kept.get("right"))
        a, b = (
            a + self.across(self.norm(a), self.norm(b)),
            b + self.back(self.norm(b), self.norm(a)),
        )
        return a, b


class Summed(Model):
    """Tokens of both images are added, place by place, and run through another block."""

    inputs: ClassVar[Inputs] = Pair.inputs

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.block = Encoder(), Block(32)

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        index = (kept or {}).get("left")
        b = self.encoder(right)
        return (self.block(self.encoder(left, index) + (b if index is None else take(b, index))),)


class Joined(Model):
    """Tokens of both images run through more blocks as one sequence."""

    inputs: ClassVar[Inputs] = Pair.inputs

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.blocks = nn.ModuleList(Block(32) for _ in range(depth))

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = torch.cat([self.encoder(left), self.encoder(right)], 1)
        for block in self.blocks:
            x = block(x)
        return (x[:, 0],)


class LateQueries(Model):
    """Learned queries join the tokens before the last two blocks (EoMT); all tokens as well."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.encoder, self.queries = Encoder(depth=depth), nn.Parameter(torch.zeros(1, 5, 32))
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = torch.cat([self.queries.expand(image.shape[0], -1, -1), self.encoder(image)], 1)
        for block, index in zip(self.blocks, ((kept or {}).get("image"), None), strict=True):
            x = block(x, index)
        return x[:, :5], x


class Decoded(Model):
    """Queries of their own read the tokens (DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.queries = Encoder(), nn.Parameter(torch.zeros(1, 7, 32))
        self.own = nn.ModuleList(Block(32) for _ in range(3))
        self.across = nn.ModuleList(Attend(32, 4) for _ in range(3))

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        memory, x = self.encoder(image), self.queries.expand(image.shape[0], -1, -1)
        for own, across in zip(self.own, self.across, strict=True):
            x = own(x + across(x, memory))
        return (x,)


class TwoStreams(Model):
    """Small and large patches, whose class tokens look at each other's patches (CrossViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = Encoder(patch=4), Encoder(patch=8)
        self.to_small, self.to_large = Attend(32, 4), Attend(32, 4)
        self.more, self.most = Block(32), Block(32)

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        kept = kept or {}
        a = self.small(image, kept.get("small"))
        b = self.large(image, kept.get("large"))
        first = a[:, :1] + self.to_large(a[:, :1], b[:, 1:])
        other = b[:, :1] + self.to_small(b[:, :1], a[:, 1:])
        a = self.more(torch.cat([first, a[:, 1:]], 1))
        return a, self.most(torch.cat([other, b[:, 1:]], 1))


class Stages(One):
    """Two images through an encoder of two stages, the second of which has fewer tokens."""

    inputs: ClassVar[Inputs] = Pair.inputs

    def __init__(self) -> None:
        super().__init__(Encoder(patch=4, prefix=0, depth=1))
        self.down = nn.Conv2d(32, 32, 2, 2)
        self.blocks = nn.ModuleList(Block(32) for _ in range(3))

    def one(self, image: Tensor) -> Tensor:
        x = self.encoder(image).transpose(1, 2).reshape(-1, 32, 8, 8)
        x = self.down(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

    def forward(self, left: Tensor, right: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        return self.one(left), self.one(right)


class Detecting(Model):
    """Fixed tokens after the patches are read together (YOLOS); the tokens as well."""

    def __init__(self, last: int = 6, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.encoder, self.count = Encoder(last=last), last
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, kept: Any = None) -> tuple[Tensor, ...]:
        x = self.encoder(image, (kept or {}).get("image"))
        return self.head(x[:, -self.count :]), x if self.whole else x[:, 1:]


def stirred(module: nn.Module, seed: int = 3) -> nn.Module:
    """With weights that make mistakes show."""
    stir(module, seed)
    return module.eval()


def export(
    module: nn.Module, path: Path, *, batch: bool = False, opset: int = 17, **kw: Any
) -> Path:
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
        torch.onnx.export(
            module,
            images,
            str(path),
            opset_version=opset,
            dynamo=False,
            input_names=list(inputs),
            output_names=names,
            dynamic_axes=free,
            **kw,
        )
    return path


def images_of(module: nn.Module, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Random images for every input."""
    generator = torch.Generator().manual_seed(seed)
    inputs: Mapping[str, tuple[int, ...]] = module.inputs  # type: ignore[assignment]
    return {n: torch.randn(batch, *dims, generator=generator) for n, dims in inputs.items()}


def run(model: gs.Graph | onnx.ModelProto | Path, feed: Mapping[str, Tensor]) -> Arrays:
    """The outputs of a model in ONNX Runtime."""
    if isinstance(model, gs.Graph):
        model = to_onnx(model)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, plain_options(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    given = {i.name: feed[i.name].numpy() for i in session.get_inputs()}
    return dict(zip(names, session.run(None, given), strict=True))
