"""One calling convention for every library: tensors in by position, a tensor or a tuple out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class TensorOutputs(torch.nn.Module):
    """Calls `model` by keyword and gives back the tensors of its dict-like or nested output.

    Args:
        model: the library's module; it returns a tensor, a sequence, or a mapping (transformers'
            ModelOutput is one).
        input_names: the keyword of each positional argument; empty: pass them by position.
        call: further keyword arguments for every call.
    """

    def __init__(
        self, model: torch.nn.Module, input_names: tuple[str, ...], call: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names
        self.call_arguments = dict(call)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The model's output tensors, in the model's order."""
        if self.input_names:
            keywords = dict(zip(self.input_names, inputs, strict=True))
            result = self.model(**keywords, **self.call_arguments)
        else:
            result = self.model(*inputs, **self.call_arguments)
        tensors = tuple(named_tensors(result).values())
        return tensors[0] if len(tensors) == 1 else tensors


def named_tensors(result: Any) -> dict[str, torch.Tensor]:
    """The tensors in what a model gave back, by name; what is not a tensor is left out.

    A field that is a sequence (the feature maps of a backbone) gives `field_0`, `field_1`, ...
    """
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, (tuple, list)):
        result = {"output": result}
    found: dict[str, torch.Tensor] = {}
    for name, value in result.items() if isinstance(result, Mapping) else ():
        if isinstance(value, torch.Tensor):
            found[str(name)] = value
        elif isinstance(value, (tuple, list)):
            parts = {f"{name}_{i}": v for i, v in enumerate(value) if isinstance(v, torch.Tensor)}
            found.update(parts)
    return found


def output_names(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of what `module` gives back, found by running it once."""
    with torch.no_grad():
        if isinstance(module, TensorOutputs):
            keywords = dict(inputs) if module.input_names else {}
            positional = () if module.input_names else tuple(inputs.values())
            return tuple(
                named_tensors(module.model(*positional, **keywords, **module.call_arguments))
            )
        return tuple(named_tensors(module(*inputs.values())))


def example_image(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """A seeded image-like input, [1, channels, height, width] float32 with unit variance."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, height, width, generator=generator)
