"""Adapters for transformers' image towers with rotary positions, relative bias or qk norms, and for
the towers of models that also read text, with what carries their tokens into the language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.adapter_hf import hf_block, scaled_layer, tower_layer
from tests.oracles.adapter_parts import identity, mha_qkv, scaled, split_heads
from tests.oracles.stream import Block, Encoder, Output, Rotary, Stream, attention, pooled_mean


def rms(norm: Any) -> Callable[[Tensor], Tensor]:
    """An RMSNorm in the dtype it is given; transformers' own always go through float32."""
    return lambda x: (
        norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    )


def tokens_only(stream: Stream) -> tuple[Output, ...]:
    """The whole sequence is the only output."""
    return (Output(stream.x, 0),)


# ---- rotary positions ----------------------------------------------------------------------------


def dinov3(model: Any) -> Encoder:
    prefix = 1 + model.config.num_register_tokens
    size = model.config.image_size
    cos, sin = model.rope_embeddings(torch.zeros(1, 3, size, size, dtype=torch.float64))
    rows = (0, 0, prefix, 0)
    rotary = Rotary(F.pad(cos.detach(), rows, value=1.0), F.pad(sin.detach(), rows), halves=True)
    return Encoder(
        embed=model.embeddings,
        prefix=prefix,
        cls=True,
        blocks=tuple(replace(scaled_layer(layer), rotary=rotary) for layer in model.model.layer),
        norm=model.norm,
        head=lambda stream: (Output(stream.x, 0), Output(stream.x[:, 0])),
    )


def pixtral(model: Any) -> Encoder:
    side = model.config.image_size // model.config.patch_size
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    cos, sin = model.patch_positional_embedding(torch.zeros(1, dtype=torch.float64), places)
    rotary = Rotary(cos, sin, halves=True)

    def block(layer: Any) -> Block:
        norms = rms(layer.attention_norm), rms(layer.ffn_norm)
        plain = hf_block(layer.attention, layer.attention.o_proj, norms, layer.feed_forward)
        return replace(plain, rotary=rotary)

    return Encoder(
        embed=lambda image: rms(model.ln_pre)(model.patch_conv(image).flatten(2).transpose(1, 2)),
        prefix=0,
        cls=False,
        blocks=tuple(map(block, model.transformer.layers)),
        norm=identity,
        head=tokens_only,
    )


# ---- relative bias -------------------------------------------------------------------------------


def beit(model: Any) -> Encoder:
    config = model.config
    grid = (config.image_size // config.patch_size,) * 2
    mean = config.use_mean_pooling

    def table(bias: Any) -> Tensor | None:
        return None if bias is None else bias(grid)[0].detach()

    shared = table(model.shared_position_bias)

    def block(layer: Any) -> Block:
        gains = [g if isinstance(g, Tensor) else None for g in (layer.lambda_1, layer.lambda_2)]
        plain = hf_block(
            layer.attention,
            layer.attention.o_proj,
            (layer.layernorm_before, layer.layernorm_after),
            layer.mlp,
            (scaled(gains[0]), scaled(gains[1])),
        )
        biases = [b for b in (shared, table(layer.relative_position_bias)) if b is not None]
        return replace(plain, bias=torch.stack(biases).sum(0) if biases else None)

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        if model.pooler is None:
            return (Output(x, 0),)
        sizes = None if stream.sizes is None else stream.sizes[:, 1:]
        pooled = model.pooler.layernorm(pooled_mean(x[:, 1:], sizes)) if mean else x[:, 0]
        return Output(x, 0), Output(pooled)

    return Encoder(
        embed=model.embeddings,
        prefix=1,
        cls=True,
        blocks=tuple(map(block, model.layers)),
        norm=model.layernorm,
        head=head,
    )


def beit_classifier(model: Any) -> Encoder:
    encoder = beit(model.beit)
    return replace(
        encoder,
        # A class token that the head leaves out has learnt nothing about the image.
        cls=not model.config.use_mean_pooling,
        head=lambda stream: (Output(model.classifier(encoder.head(stream)[1].value)),),
    )


# ---- towers of vision-language models ------------------------------------------------------------


def blip2(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        attn = layer.self_attn

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = attn.qkv(layer.layer_norm1(x)).chunk(3, -1)
            q, k, v = (split_heads(part, attn.num_heads) for part in parts)
            return q, k, v

        return Block(
            qkv=qkv,
            scale=attn.scale,
            attend=lambda x, context: x + attn.projection(context),
            mlp=lambda x: x + layer.mlp(layer.layer_norm2(x)),
        )

    return Encoder(
        embed=model.embeddings,
        prefix=1,
        cls=True,
        blocks=tuple(map(block, model.encoder.layers)),
        norm=model.post_layernorm,
        # The pooled token is normed twice.
        head=lambda s: (Output(s.x, 0), Output(model.post_layernorm(s.x[:, 0]))),
    )


def idefics3(model: Any) -> Encoder:
    """Idefics3 and SmolVLM."""

    def embed(image: Tensor) -> Tensor:
        rows, columns = (side // model.patch_size for side in image.shape[2:])
        return model.embeddings(image, torch.ones(len(image), rows, columns, dtype=torch.bool))

    return Encoder(
        embed=embed,
        prefix=0,
        cls=False,
        blocks=tuple(map(tower_layer, model.encoder.layers)),
        norm=model.post_layernorm,
        head=tokens_only,
    )


def siglip2(wrapper: Any) -> Encoder:
    """`tcompile.models.hf_towers.Siglip2Image`: patches in rows, then rows of pixels in a patch."""
    model, patch = wrapper.model, wrapper.patch

    def embed(image: Tensor) -> Tensor:
        pixels = F.unfold(image, patch, stride=patch).transpose(1, 2)  # [B, N, 3 * p * p]
        pixels = pixels.unflatten(2, (image.shape[1], -1)).transpose(2, 3).flatten(2)
        embeddings = model.embeddings
        return embeddings.patch_embedding(pixels) + embeddings.position_embedding.weight

    def head(stream: Stream) -> tuple[Output, ...]:
        if not model.use_head:
            return tokens_only(stream)
        x, attn = stream.x, model.head.attention
        q, k, v = mha_qkv(attn, model.head.probe.expand(len(x), -1, -1), x)
        y = attn.out_proj(attention(q, k, v, attn.head_dim**-0.5, stream.key_bias()))
        return Output(x, 0), Output((y + model.head.mlp(model.head.layernorm(y)))[:, 0])

    return Encoder(
        embed=embed,
        prefix=0,
        cls=False,
        blocks=tuple(map(tower_layer, model.encoder.layers)),
        norm=model.post_layernorm,
        head=head,
    )


def internvl(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        attn = layer.attention
        normed = model.config.use_qk_norm
        norm_q, norm_k = (rms(n) if normed else identity for n in (attn.q_norm, attn.k_norm))
        before, after = (
            rms(n) if model.config.norm_type == "rms_norm" else n
            for n in (layer.layernorm_before, layer.layernorm_after)
        )
        scale1, scale2 = scaled(layer.lambda_1), scaled(layer.lambda_2)

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = before(x)
            parts = norm_q(attn.q_proj(y)), norm_k(attn.k_proj(y)), attn.v_proj(y)
            q, k, v = (split_heads(part, attn.num_heads) for part in parts)
            return q, k, v

        return Block(
            qkv=qkv,
            scale=attn.scale,
            attend=lambda x, context: x + scale1(attn.projection_layer(context)),
            mlp=lambda x: x + scale2(layer.mlp(after(x))),
        )

    return Encoder(
        embed=model.embeddings,
        prefix=1,
        cls=True,
        blocks=tuple(map(block, model.encoder.layer)),
        norm=model.layernorm,
        head=tokens_only,
    )
