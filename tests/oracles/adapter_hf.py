"""Adapters for transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.adapter_parts import identity, mha_qkv, split_heads
from tests.oracles.stream import Block, Encoder, Output, Stream, attention, pooled_mean


def hf_block(
    attn: Any,
    out: Any,
    norms: tuple[Any, Any],
    mlp: Callable[[Tensor], Tensor],
    scales: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = (identity, identity),
) -> Block:
    """A pre-norm layer around transformers' usual attention, with q, k and v projected apart."""
    heads = attn.config.num_attention_heads
    scale1, scale2 = scales

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = norms[0](x)
        q, k, v = (split_heads(p(y), heads) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        return q, k, v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + scale1(out(context)),
        mlp=lambda x: x + scale2(mlp(norms[1](x))),
    )


def _plain_layer(layer: Any) -> Block:
    """ViT and DeiT."""
    norms = layer.layernorm_before, layer.layernorm_after
    return hf_block(layer.attention, layer.attention.o_proj, norms, layer.mlp)


def scaled_layer(layer: Any) -> Block:
    """Dinov2, with or without registers, and DINOv3: LayerScale on both branches."""
    norms, scales = (layer.norm1, layer.norm2), (layer.layer_scale1, layer.layer_scale2)
    return hf_block(layer.attention, layer.attention.o_proj, norms, layer.mlp, scales)


def tower_layer(layer: Any) -> Block:
    """CLIP, SigLIP, SigLIP 2, Idefics3."""
    norms = layer.layer_norm1, layer.layer_norm2
    return hf_block(layer.self_attn, layer.self_attn.out_proj, norms, layer.mlp)


def hf_vit(model: Any, prefix: int = 1) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        pooled = () if model.pooler is None else (Output(model.pooler(x)),)
        return Output(x, 0), *pooled

    return Encoder(
        embed=model.embeddings,
        prefix=prefix,
        cls=True,
        blocks=tuple(map(_plain_layer, model.layers)),
        norm=model.layernorm,
        head=head,
    )


def hf_dinov2(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        return Output(x, 0), Output(x[:, 0])

    return Encoder(
        embed=model.embeddings,
        prefix=1 + getattr(model.config, "num_register_tokens", 0),
        cls=True,
        blocks=tuple(map(scaled_layer, model.encoder.layer)),
        norm=model.layernorm,
        head=head,
    )


def hf_clip(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        return Output(stream.x, 0), Output(model.post_layernorm(stream.x[:, 0]))

    return Encoder(
        embed=lambda image: model.pre_layrnorm(model.embeddings(image)),
        prefix=1,
        cls=True,
        blocks=tuple(map(tower_layer, model.encoder.layers)),
        norm=identity,
        head=head,
    )


def hf_siglip(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        if not hasattr(model, "head"):
            return (Output(x, 0),)
        attn = model.head.attention
        q, k, v = mha_qkv(attn, model.head.probe.expand(x.shape[0], -1, -1), x)
        y = attn.out_proj(attention(q, k, v, attn.head_dim**-0.5, stream.key_bias()))
        pooled = y + model.head.mlp(model.head.layernorm(y))
        return Output(x, 0), Output(pooled[:, 0])

    return Encoder(
        embed=model.embeddings,
        prefix=0,
        cls=False,
        blocks=tuple(map(tower_layer, model.encoder.layers)),
        norm=model.post_layernorm,
        head=head,
    )


def _with_head(
    encoder: Encoder, extra: Callable[[Stream, tuple[Output, ...]], tuple[Output, ...]]
) -> Encoder:
    """The same encoder with more outputs, computed from the stream and those it already has."""

    def head(stream: Stream) -> tuple[Output, ...]:
        inner = encoder.head(stream)
        return *inner, *extra(stream, inner)

    return replace(encoder, head=head)


def hf_vit_classifier(model: Any) -> Encoder:
    return _with_head(
        hf_vit(model.vit), lambda _, out: (Output(model.classifier(out[0].value[:, 0])),)
    )


def hf_deit_classifier(model: Any) -> Encoder:
    return _with_head(
        hf_vit(model.deit, 2), lambda _, out: (Output(model.classifier(out[0].value[:, 0])),)
    )


def hf_deit_teacher(model: Any) -> Encoder:
    def extra(_: Stream, out: tuple[Output, ...]) -> tuple[Output, ...]:
        x = out[0].value
        one, two = model.cls_classifier(x[:, 0]), model.distillation_classifier(x[:, 1])
        return Output((one + two) / 2), Output(one), Output(two)

    return _with_head(hf_vit(model.deit, 2), extra)


def hf_clip_projection(model: Any) -> Encoder:
    return _with_head(
        hf_clip(model.vision_model), lambda _, out: (Output(model.visual_projection(out[1].value)),)
    )


def hf_siglip_classifier(model: Any) -> Encoder:
    return _with_head(
        hf_siglip(model.vision_model),
        lambda stream, out: (Output(model.classifier(pooled_mean(out[0].value, stream.sizes))),),
    )


def hf_dinov2_classifier(model: Any) -> Encoder:
    encoder = hf_dinov2(getattr(model, model.base_model_prefix))

    def extra(stream: Stream, out: tuple[Output, ...]) -> tuple[Output, ...]:
        x, p = out[0].value, encoder.prefix
        sizes = None if stream.sizes is None else stream.sizes[:, p:]
        mean = pooled_mean(x[:, p:], sizes)
        return (Output(model.classifier(torch.cat([x[:, 0], mean], dim=1))),)

    return _with_head(encoder, extra)
