"""Adapters for towers behind which neighbouring patches become one token: pixel shuffle and pools.

The head gets the patches group after group, row by row in each (`Encoder.groups`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_hf import hf_block, hf_siglip
from tests.oracles.adapter_towers import idefics3, internvl
from tests.oracles.stream import Block, Encoder, Output, Rotary, Stream


def squares(side: int, edge: int) -> Tensor:
    """[G, edge^2]: the patches of a grid side x side in squares, all in raster order."""
    grid = torch.arange(side**2).view(side // edge, edge, side // edge, edge)
    return grid.transpose(1, 2).reshape(-1, edge**2)


def joined(x: Tensor, members: int) -> Tensor:
    """[B, G * g, C] -> [B, G, g * C]: neighbours side by side."""
    return x.unflatten(1, (-1, members)).flatten(2)


def _grouped(
    tower: Encoder, side: int, edge: int, behind: Callable[[Tensor], Tensor], **changes: Any
) -> Encoder:
    """`tower` with one output: `behind` of its patches, which come group after group."""

    def head(stream: Stream) -> tuple[Output, ...]:
        patches = stream.x[:, tower.prefix : stream.x.shape[1] - tower.suffix]
        value = behind(patches)
        return (Output(value, tower.prefix, tower.suffix, edge**2),)

    return replace(tower, head=head, groups=squares(side, edge), **changes)


def internvl_projector(model: Any) -> Encoder:
    """The class token is dropped: nothing says what it has learnt."""
    projector, grid = model.parts["projector"], model.tower.embeddings.patch_embeddings.patch_shape
    width = projector.layer_norm.normalized_shape[0]
    edge = round((width / model.config.hidden_size) ** 0.5)
    return _grouped(
        internvl(model.tower), grid[0], edge, lambda x: projector(joined(x, edge**2)), cls=False
    )


def idefics3_connector(model: Any) -> Encoder:
    """Idefics3 and SmolVLM."""
    connector = model.parts["connector"]
    edge = connector.scale_factor
    side = model.config.image_size // model.config.patch_size
    return _grouped(
        idefics3(model.tower.tower),
        side,
        edge,
        lambda x: connector.modality_projection(joined(x, edge**2)),
    )


def gemma3(model: Any) -> Encoder:
    """Average pool, RMSNorm with gain 1 + weight (in the dtype it is given), matrix."""
    projector = model.parts["projector"]
    edge, norm = projector.kernel_size, projector.mm_soft_emb_norm

    def behind(x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, edge**2)).mean(dim=2)
        x = x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * (1 + norm.weight)
        return x @ projector.mm_input_projection_weight

    return _grouped(hf_siglip(model.tower), projector.patches_per_image, edge, behind)


def llama4(model: Any) -> Encoder:
    """Class token behind the patches, without position; rotary positions as complex numbers."""
    config = model.config
    side = config.image_size // config.patch_size
    turns = model.rotary_embedding.freqs_ci.reshape(side**2 + 1, -1)
    cos, sin = (part.detach().repeat_interleave(2, dim=-1) for part in (turns.real, turns.imag))
    rotary = Rotary(cos, sin, halves=False)

    def block(layer: Any) -> Block:
        norms = layer.input_layernorm, layer.post_attention_layernorm
        return replace(
            hf_block(layer.self_attn, layer.self_attn.o_proj, norms, layer.mlp), rotary=rotary
        )

    def embed(image: Tensor) -> Tensor:
        x = model.patch_embedding(image)
        x = torch.cat([x, model.class_embedding.expand(len(x), 1, -1)], dim=1)
        return model.layernorm_pre(x + model.positional_embedding_vlm)

    tower = Encoder(
        embed=embed,
        prefix=0,
        suffix=1,
        # The class token is dropped: nothing says what it has learnt.
        cls=False,
        blocks=tuple(map(block, model.model.layers)),
        norm=model.layernorm_post,
        head=lambda stream: (Output(stream.x, 0),),
    )
    edge = round(1 / config.pixel_shuffle_ratio)
    return _grouped(tower, side, edge, lambda x: model.vision_adapter.mlp(joined(x, edge**2)))
