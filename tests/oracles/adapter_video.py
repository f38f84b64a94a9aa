"""Adapters for transformers' models of videos."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.oracles.adapter_parts import identity, split_heads
from tests.oracles.stream import Block, Encoder, Output


def _layer(layer: Any) -> Block:
    attn, heads = layer.attention.attention, layer.attention.attention.num_attention_heads

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = layer.layernorm_before(x)
        q, k, v = (split_heads(p(y), heads) for p in (attn.query, attn.key, attn.value))
        return q, k, v

    def mlp(x: Tensor) -> Tensor:
        grown = layer.intermediate(layer.layernorm_after(x))
        return x + layer.output.dense(grown)  # type: ignore[no-any-return]

    return Block(
        qkv=qkv,
        scale=attn.scaling,
        attend=lambda x, context: x + layer.attention.output.dense(context),
        mlp=mlp,
    )


def videomae(model: Any) -> Encoder:
    config = model.config
    return Encoder(
        embed=lambda video: model.embeddings(video, None),
        prefix=0,
        cls=False,
        blocks=tuple(map(_layer, model.encoder.layer)),
        norm=identity if model.layernorm is None else model.layernorm,
        head=lambda stream: (Output(stream.x, 0),),
        frames=config.num_frames // config.tubelet_size,
    )
