"""Small networks that are no plain vision transformer: what tcompile must refuse, or get right.

Each has 3 x 24 x 24 images as input (text: 16 ids; sound: a signal), random weights, and is written
as a TorchScript export.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.support.foreign_parts import (
    CLASSES,
    HEADS,
    IMAGE,
    PATCH,
    TOKENS,
    WIDTH,
    Attention,
    Block,
    CrossCovariance,
    Embed,
    Encoder,
    LinearAttention,
    Mlp,
    OverGrid,
    OverTokens,
    Recurrent,
    Strided,
    TokenNorm,
    Windows,
)


class WithRnn(nn.Module):
    """An LSTM where the MLP would be."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class TwoStreams(nn.Module):
    """Two token axes of the same length that read each other (CrossViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Embed(), Embed()
        self.first, self.second = Block(), Block()
        self.across, self.back = Attention(), Attention()
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        one, two = self.first(self.one(image)), self.second(self.two(image.flip(-1)))
        one, two = one + self.across(one, two), two + self.back(two, one)
        one, two = self.second(one), self.first(two)
        return self.head(torch.cat([one.mean(1), two.mean(1)], -1))


class Decoder(nn.Module):
    """Learned queries that read the encoder's tokens, boxes and classes of each (DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = Embed(), nn.Sequential(Block(), Block())
        self.queries = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.self_, self.cross, self.mlp = Attention(), Attention(), Mlp()
        self.boxes, self.classes = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(self.embed(image))
        x = self.queries.expand(image.shape[0], -1, -1)
        x = x + self.self_(x)
        x = x + self.cross(x, memory)
        x = x + self.mlp(x)
        return self.boxes(x).sigmoid(), self.classes(x)


class Segmenter(nn.Module):
    """A map of classes from the patches, by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = Embed(), nn.Sequential(Block(), Block())
        self.up = nn.ConvTranspose2d(WIDTH, CLASSES, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.blocks(self.embed(image)).transpose(1, 2)
        return self.up(grid.reshape(-1, WIDTH, IMAGE // PATCH, IMAGE // PATCH))


class Text(nn.Module):
    """A text encoder: 16 ids."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks = nn.Sequential(Block(Attention(_causal if causal else None)), Block())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(16))
        return self.head(self.blocks(x)[:, 0])


class Sound(nn.Module):
    """A signal cut by a 1-D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(1, WIDTH, 8, 8)
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(signal).transpose(1, 2)).mean(1))


class Detector(nn.Module):
    """Convolutions, and a fixed number of best anchors by TopK."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 2, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.body(image).flatten(2).transpose(1, 2)
        best, where = found[..., 0].topk(5, -1)
        return best, torch.gather(found, 1, where[..., None].expand(-1, -1, 5))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Rolled(nn.Module):
    """Each token gets its neighbour's features as well."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:], x[:, :1]], 1)


def _causal(logits: Tensor) -> Tensor:
    size = logits.shape[-1]
    hidden = torch.full((size, size), -1e9).triu(1)
    return (logits + hidden).softmax(-1)


def _convnet() -> nn.Module:
    conv = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        Residual(conv),
        nn.MaxPool2d(2),
        Residual(conv),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _convnext() -> nn.Module:
    spread = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
    return Encoder(Block(OverGrid(spread)), Block(OverGrid(spread)))


def _over_queries(logits: Tensor) -> Tensor:
    return logits.softmax(-2)


def _sigmoid(logits: Tensor) -> Tensor:
    return logits.sigmoid()


def _twice(logits: Tensor) -> Tensor:
    """Slot attention: over queries, then each query's weights sum to one."""
    chances = logits.softmax(-2)
    return chances / chances.sum(-1, keepdim=True)


class Talking(nn.Module):
    """Heads mixed before and after the softmax, with a bias after (CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)
        self.attend = Attention(self.mix)

    def mix(self, logits: Tensor) -> Tensor:
        logits = self.before(logits.permute(0, 2, 3, 1)).softmax(-2)
        return self.after(logits).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: Encoder(Block(), Block()),
    "convnet": _convnet,
    "convnext": _convnext,
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE**2, 8), nn.ReLU()),
    "mixer": lambda: Encoder(Block(OverTokens(Mlp(TOKENS))), Block(OverTokens(Mlp(TOKENS)))),
    "mixer-and-attention": lambda: Encoder(Block(), Block(OverTokens(Mlp(TOKENS))), Block()),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm-as-mlp": lambda: Encoder(Block(), Block(feed=WithRnn())),
    "pooling": lambda: Encoder(Block(OverGrid(nn.AvgPool2d(3, 1, 1))), Block()),
    "conv-in-mlp": lambda: Encoder(
        Block(), Block(feed=OverGrid(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1))), Block()
    ),
    "conv-in-keys": lambda: Encoder(Block(Strided()), Block(Strided())),
    "cross-covariance": lambda: Encoder(Block(CrossCovariance()), Block(CrossCovariance())),
    "attention-then-channels": lambda: Encoder(Block(), Block(CrossCovariance())),
    "linear-attention": lambda: Encoder(Block(LinearAttention()), Block(LinearAttention())),
    "softmax-then-linear": lambda: Encoder(Block(), Block(LinearAttention())),
    "windows": lambda: Encoder(Block(Windows()), Block(Windows(1))),
    "windows-and-global": lambda: Encoder(Block(Windows()), Block(), Block(Windows()), Block()),
    "token-norm": lambda: Encoder(Block(), TokenNorm(), Block()),
    "rolled": lambda: Encoder(Block(), Residual(Rolled()), Block()),
    "softmax-over-queries": lambda: Encoder(Block(Attention(_over_queries)), Block()),
    "queries-in-the-second": lambda: Encoder(Block(), Block(Attention(_over_queries))),
    "slots": lambda: Encoder(Block(), Block(Attention(_twice))),
    "sigmoid-attention": lambda: Encoder(Block(), Block(Attention(_sigmoid))),
    "causal": lambda: Encoder(Block(Attention(_causal)), Block(Attention(_causal))),
    "talking-heads": lambda: Encoder(Block(), Block(Talking())),
    "two-streams": TwoStreams,
    "decoder": Decoder,
    "segmenter": Segmenter,
    "text": Text,
    "text-causal": lambda: Text(causal=True),
    "sound": Sound,
    "detector": Detector,
}


def example(name: str, batch: int = 2) -> Tensor:
    """An input for the network."""
    if name.startswith("text"):
        return torch.randint(0, 2, (batch, 16))
    return torch.randn(batch, 1, 128) if name == "sound" else torch.randn(batch, 3, IMAGE, IMAGE)


def write(name: str, path: Path, seed: int = 0) -> None:
    """Export the network."""
    torch.manual_seed(seed)
    module = NETWORKS[name]().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    torch.onnx.export(
        module, (example(name),), str(path), dynamo=False, opset_version=17, input_names=["input"]
    )
