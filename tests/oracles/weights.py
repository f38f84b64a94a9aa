"""Random weights that make mistakes show.

Freshly initialised vision transformers barely mix tokens: LayerScale is 1e-5, attention is uniform,
class tokens and biases are zero.  A wrong row then moves the output by less than the tolerance.
`stir` redraws everything so that attention is peaked, every branch counts and no two parameters
are equal (equal ones are de-duplicated by exporters).
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def stir(module: nn.Module, seed: int) -> None:
    """Redraw all parameters in place, deterministically.

    Matrices and kernels: N(0, 1.5 / fan_in).  Norm and LayerScale gains: N(0.7, 0.15).  Biases and
    norm offsets: N(0, 0.1).  Tokens, position embeddings, probes: N(0, 1), so tokens differ.
    BatchNorm statistics stay near (0, 1).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    gains = ("weight", "gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2")
    for name, parameter in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        owner = module.get_submodule(name.rpartition(".")[0])
        if (
            isinstance(owner, nn.Linear | nn.Conv2d | nn.Conv3d | nn.MultiheadAttention)
            and parameter.ndim > 1
        ):
            fan_in = parameter[0].numel()
            normal(parameter, 0.0, (1.5 / fan_in) ** 0.5)
        elif last == "proj" and parameter.ndim == 2:  # open_clip: [width, output]
            normal(parameter, 0.0, (1.5 / parameter.shape[0]) ** 0.5)
        elif parameter.ndim == 1 and last in gains:
            normal(parameter, 0.7, 0.15)
        elif parameter.ndim == 1 and last != "class_embedding":
            normal(parameter, 0.0, 0.1)
        else:
            normal(parameter, 0.0, 1.0)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            normal(buffer, 0.0, 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.5 + 0.75)
