"""Small modules for the sources `tests.unit.models.tiny_sources:NAME`."""

from __future__ import annotations

import torch
from torch import nn


class TwoOutputs(nn.Module):
    """Two outputs from one image; carries its own preprocessing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.image_size = 16
        self.preprocessing = {"input": "image", "size": [16, 16], "mean": [0] * 3, "std": [1] * 3}
        self.conv = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.conv(image).flatten(2).transpose(1, 2)
        return {"tokens": tokens, "pooled": tokens.mean(1)}


class BatchInPython(nn.Module):
    """Bakes the batch it is traced with into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 16
        self.weight = nn.Parameter(torch.ones(3 * 16 * 16, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(int(image.shape[0]), -1) @ self.weight


class NotExportable(nn.Module):
    """No exporter can write a sort by a Python key."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(image[:, 0]).real


def two_outputs(width: int = 8) -> nn.Module:
    return TwoOutputs(width)


def with_inputs() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return TwoOutputs(), {"image": torch.zeros(1, 3, 24, 24)}


def batch_in_python() -> nn.Module:
    return BatchInPython()


def not_exportable() -> nn.Module:
    return NotExportable()


def not_a_module() -> int:
    return 3


def broken() -> nn.Module:
    raise RuntimeError("the weights are on another machine")


number = 3
