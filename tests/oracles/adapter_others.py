"""Adapters for open_clip, torchvision and our own models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_parts import identity, mha_block, split_heads
from tests.oracles.stream import Block, Encoder, Output, Rotary, Stream, pooled_mean


def open_clip(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        if model.pool_type == "avg":
            sizes = None if stream.sizes is None else stream.sizes[:, 1:]
            pooled = pooled_mean(x[:, 1:], sizes)
        else:
            pooled = x[:, 0]
        if model.final_ln_after_pool:
            pooled = model.ln_post(pooled)
        return Output(pooled @ model.proj), Output(pooled), Output(x[:, 1:], 1)

    return Encoder(
        embed=model._embeds,
        prefix=1,
        cls=True,
        blocks=tuple(
            mha_block(b.ln_1, b.attn, b.ln_2, b.mlp, b.ls_1, b.ls_2)
            for b in model.transformer.resblocks
        ),
        norm=identity if model.final_ln_after_pool else model.ln_post,
        head=head,
    )


def torchvision(model: Any) -> Encoder:
    def embed(image: Tensor) -> Tensor:
        patches = model._process_input(image)
        x = torch.cat([model.class_token.expand(len(image), -1, -1), patches], dim=1)
        return x + model.encoder.pos_embedding

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        return Output(model.heads(x[:, 0])), Output(x[:, 0]), Output(x, 0)

    return Encoder(
        embed=embed,
        prefix=1,
        cls=True,
        blocks=tuple(
            mha_block(b.ln_1, b.self_attention, b.ln_2, b.mlp) for b in model.encoder.layers
        ),
        norm=model.encoder.ln,
        head=head,
    )


def biased(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (
                split_heads(part, layer.heads) for part in layer.qkv(layer.norm1(x)).chunk(3, -1)
            )
            return q, k, v

        return Block(
            qkv=qkv,
            scale=(layer.qkv.in_features // layer.heads) ** -0.5,
            attend=lambda x, context: x + layer.proj(context),
            mlp=lambda x: x + layer.mlp(layer.norm2(x)),
            bias=getattr(layer, "bias", None),
        )

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        return Output(model.head(x[:, 0])), Output(x, 0)

    return Encoder(
        embed=model.embed,
        prefix=1,
        cls=True,
        blocks=tuple(map(block, model.blocks)),
        norm=model.norm,
        head=head,
    )


def masked(model: Any) -> Encoder:
    """A mask as the logits have it: 0 where it is seen, minus infinity where not."""

    def mask(image: Tensor) -> Tensor:
        hidden = ~model.mask(image)
        return torch.zeros(hidden.shape, dtype=image.dtype).masked_fill(hidden, -torch.inf)

    return replace(biased(model), mask=mask)


def odd(model: Any) -> Encoder:
    plan = model.plan

    def block(number: int, layer: Any) -> Block:
        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (split_heads(part, 5) for part in layer.qkv(layer.norm1(x)).chunk(3, -1))
            return q, k, v

        def branch(x: Tensor) -> Tensor:
            return layer.gain * layer.mlp(layer.norm2(x))

        def attend(x: Tensor, context: Tensor) -> Tensor:
            y = layer.keep * x + layer.gain * layer.proj(context)
            return y + branch(x) if plan.parallel else y

        return Block(
            qkv=qkv,
            scale=8**-0.5,
            attend=attend,
            mlp=identity if plan.parallel else lambda x: layer.keep * x + branch(x),
            rotary=Rotary(model.cos, model.sin, halves=True) if plan.rotary else None,
            late=model.late(number),
            parallel=plan.parallel,
        )

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        cls = x[:, 0] if plan.before else x[:, -plan.after]
        return Output(model.head(cls)), Output(x, 0)

    return Encoder(
        embed=model.embed,
        prefix=plan.before,
        suffix=plan.after,
        cls=True,
        blocks=tuple(block(i, layer) for i, layer in enumerate(model.blocks)),
        norm=model.norm,
        head=head,
    )


def glyphs(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        attn = layer.attn

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (
                split_heads(part, attn.heads) for part in attn.qkv(layer.norm1(x)).chunk(3, -1)
            )
            return q, k, v

        return Block(
            qkv=qkv,
            scale=(attn.qkv.in_features // attn.heads) ** -0.5,
            attend=lambda x, context: x + attn.proj(context),
            mlp=lambda x: x + layer.mlp(layer.norm2(x)),
        )

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        return Output(model.head(x[:, 0])), Output(model.patch_head(x[:, 1:]), 1)

    return Encoder(
        embed=model.embed,
        prefix=1,
        cls=True,
        blocks=tuple(map(block, model.blocks)),
        norm=model.norm,
        head=head,
    )
