"""Turns a model of each library into the oracles' `Encoder`, by calling its submodules.

Nothing here knows ONNX.  `adapt` finds the model inside whatever wrapper an exporter put around it;
`select_outputs` then says which of the encoder's outputs the wrapper returns, by comparing values,
which at the same time proves the adapter right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.stream import Block, Encoder, Output, Stream, attention, pooled_mean


def adapt(module: nn.Module) -> Encoder:
    """The encoder of the outermost model in `module` that some adapter knows; else LookupError."""
    for inner in module.modules():
        for base in type(inner).__mro__:
            name = f"{base.__module__.split('.')[0]}.{base.__name__}"
            if name in _ADAPTERS:
                return _ADAPTERS[name](inner)
    raise LookupError(f"no adapter for {type(module).__name__}")


def flatten(value: Any) -> list[Tensor]:
    """The tensors a model returned, in order: from a tensor, tuple, dict or ModelOutput."""
    if isinstance(value, Tensor):
        return [value]
    if value is None:
        return []
    items = value.values() if hasattr(value, "values") else value
    return [tensor for item in items for tensor in flatten(item)]


def select_outputs(encoder: Encoder, module: nn.Module, image: Tensor, atol: float) -> list[int]:
    """For each output of module(image), the position of the equal one among the encoder's.

    atol is relative to the output's largest magnitude.  Raises AssertionError when an output of the
    module equals none.
    """
    x = encoder.embed(image)
    for block in encoder.blocks:
        q, k, v = block.qkv(x)
        x = block.mlp(block.attend(x, attention(q, k, v, block.scale, block.bias)))
    candidates = encoder.head(Stream(encoder.norm(x)))
    chosen = []
    for number, value in enumerate(flatten(module(image))):
        errors = [
            float((value - c.value).abs().max() / value.abs().max())
            if c.value.shape == value.shape
            else float("inf")
            for c in candidates
        ]
        best = min(range(len(errors)), key=errors.__getitem__)
        assert errors[best] <= atol, f"output {number} {tuple(value.shape)}: errors {errors}"
        chosen.append(best)
    return chosen


# ---- parts that several libraries share ----------------------------------------------------------


def _identity(x: Tensor) -> Tensor:
    return x


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H*d] -> [B, H, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mha_qkv(attn: nn.MultiheadAttention, query: Tensor, memory: Tensor) -> list[Tensor]:
    """Projected q (of query), k and v (of memory) of a batch-first or -last MultiheadAttention."""
    weights = attn.in_proj_weight.chunk(3)
    biases = attn.in_proj_bias.chunk(3)
    return [
        _heads(F.linear(source, weight, bias), attn.num_heads)
        for source, weight, bias in zip((query, memory, memory), weights, biases, strict=True)
    ]


def _mha_block(
    norm1: nn.Module,
    attn: nn.MultiheadAttention,
    norm2: nn.Module,
    mlp: Callable[[Tensor], Tensor],
    scale1: Callable[[Tensor], Tensor] = _identity,
    scale2: Callable[[Tensor], Tensor] = _identity,
) -> Block:
    """A pre-norm block around nn.MultiheadAttention (open_clip, torchvision)."""

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = norm1(x)
        q, k, v = _mha_qkv(attn, y, y)
        return q, k, v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + scale1(attn.out_proj(context)),
        mlp=lambda x: x + scale2(mlp(norm2(x))),
    )


# ---- timm ----------------------------------------------------------------------------------------


def _timm_block(block: Any) -> Block:
    attn = block.attn

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (_heads(part, attn.num_heads) for part in attn.qkv(block.norm1(x)).chunk(3, -1))
        return attn.q_norm(q), attn.k_norm(k), v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + block.ls1(attn.proj(attn.norm(context))),
        mlp=lambda x: x + block.ls2(block.mlp(block.norm2(x))),
    )


def _timm_attention_pool(pool: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """AttentionPoolLatent on [B, N, C], each key counted by the log size in `bias`."""
    q = _heads(pool.q(pool.latent), pool.num_heads).expand(x.shape[0], -1, -1, -1)
    k, v = (_heads(part, pool.num_heads) for part in pool.kv(x).chunk(2, -1))
    y = pool.proj(attention(pool.q_norm(q), pool.k_norm(k), v, pool.head_dim**-0.5, bias))
    y = y + pool.mlp(pool.norm(y))
    return y[:, 0]


def _timm_embed(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda image: model.norm_pre(model._pos_embed(model.patch_embed(image)))


def _timm(model: Any) -> Encoder:
    prefix = model.num_prefix_tokens

    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        first = 0 if model.pool_include_prefix else prefix
        sizes = None if stream.sizes is None else stream.sizes[:, first:]
        if model.attn_pool is not None:
            bias = stream.key_bias()
            kept = None if bias is None else bias[..., first:]
            pooled = _timm_attention_pool(model.attn_pool, x[:, first:], kept)
        elif model.global_pool == "token":
            pooled = x[:, 0]
        elif model.global_pool == "avg":
            pooled = pooled_mean(x[:, first:], sizes)
        else:
            return (Output(x, 0),)
        features = model.fc_norm(pooled)
        return Output(model.head(features)), Output(features), Output(x, 0)

    return Encoder(
        embed=_timm_embed(model),
        prefix=prefix,
        # A class token that the head leaves out has learnt nothing about the image.
        cls=model.cls_token is not None and model.global_pool in ("token", ""),
        blocks=tuple(map(_timm_block, model.blocks)),
        norm=model.norm,
        head=head,
    )


def _timm_distilled(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        logits = (model.head(x[:, 0]) + model.head_dist(x[:, 1])) / 2
        return Output(logits), Output(x, 0)

    return Encoder(
        embed=_timm_embed(model),
        prefix=2,
        cls=True,
        blocks=tuple(map(_timm_block, model.blocks)),
        norm=model.norm,
        head=head,
    )


# ---- transformers --------------------------------------------------------------------------------


def _hf_block(layer: Any, attn: Any, out: Any, norms: tuple[Any, Any], scales: Any) -> Block:
    heads = attn.config.num_attention_heads
    scale1, scale2 = scales

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = norms[0](x)
        q, k, v = (_heads(p(y), heads) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        return q, k, v

    return Block(
        qkv=qkv,
        scale=attn.head_dim**-0.5,
        attend=lambda x, context: x + scale1(out(context)),
        mlp=lambda x: x + scale2(layer.mlp(norms[1](x))),
    )


def _plain_layer(layer: Any) -> Block:
    """ViT and DeiT."""
    norms = layer.layernorm_before, layer.layernorm_after
    return _hf_block(layer, layer.attention, layer.attention.o_proj, norms, (_identity, _identity))


def _scaled_layer(layer: Any) -> Block:
    """Dinov2, with or without registers: LayerScale on both branches."""
    norms, scales = (layer.norm1, layer.norm2), (layer.layer_scale1, layer.layer_scale2)
    return _hf_block(layer, layer.attention, layer.attention.o_proj, norms, scales)


def _tower_layer(layer: Any) -> Block:
    """CLIP and SigLIP."""
    norms = layer.layer_norm1, layer.layer_norm2
    return _hf_block(
        layer, layer.self_attn, layer.self_attn.out_proj, norms, (_identity, _identity)
    )


def _hf_vit(model: Any, prefix: int = 1) -> Encoder:
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


def _hf_dinov2(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        return Output(x, 0), Output(x[:, 0])

    return Encoder(
        embed=model.embeddings,
        prefix=1 + getattr(model.config, "num_register_tokens", 0),
        cls=True,
        blocks=tuple(map(_scaled_layer, model.encoder.layer)),
        norm=model.layernorm,
        head=head,
    )


def _hf_clip(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        return Output(stream.x, 0), Output(model.post_layernorm(stream.x[:, 0]))

    return Encoder(
        embed=lambda image: model.pre_layrnorm(model.embeddings(image)),
        prefix=1,
        cls=True,
        blocks=tuple(map(_tower_layer, model.encoder.layers)),
        norm=_identity,
        head=head,
    )


def _hf_siglip(model: Any) -> Encoder:
    def head(stream: Stream) -> tuple[Output, ...]:
        x = stream.x
        if not hasattr(model, "head"):
            return (Output(x, 0),)
        attn = model.head.attention
        q, k, v = _mha_qkv(attn, model.head.probe.expand(x.shape[0], -1, -1), x)
        y = attn.out_proj(attention(q, k, v, attn.head_dim**-0.5, stream.key_bias()))
        pooled = y + model.head.mlp(model.head.layernorm(y))
        return Output(x, 0), Output(pooled[:, 0])

    return Encoder(
        embed=model.embeddings,
        prefix=0,
        cls=False,
        blocks=tuple(map(_tower_layer, model.encoder.layers)),
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


def _hf_vit_classifier(model: Any) -> Encoder:
    return _with_head(
        _hf_vit(model.vit), lambda _, out: (Output(model.classifier(out[0].value[:, 0])),)
    )


def _hf_deit_classifier(model: Any) -> Encoder:
    return _with_head(
        _hf_vit(model.deit, 2), lambda _, out: (Output(model.classifier(out[0].value[:, 0])),)
    )


def _hf_deit_teacher(model: Any) -> Encoder:
    def extra(_: Stream, out: tuple[Output, ...]) -> tuple[Output, ...]:
        x = out[0].value
        one, two = model.cls_classifier(x[:, 0]), model.distillation_classifier(x[:, 1])
        return Output((one + two) / 2), Output(one), Output(two)

    return _with_head(_hf_vit(model.deit, 2), extra)


def _hf_clip_projection(model: Any) -> Encoder:
    return _with_head(
        _hf_clip(model.vision_model),
        lambda _, out: (Output(model.visual_projection(out[1].value)),),
    )


def _hf_siglip_classifier(model: Any) -> Encoder:
    return _with_head(
        _hf_siglip(model.vision_model),
        lambda stream, out: (Output(model.classifier(pooled_mean(out[0].value, stream.sizes))),),
    )


def _hf_dinov2_classifier(model: Any) -> Encoder:
    encoder = _hf_dinov2(getattr(model, model.base_model_prefix))

    def extra(stream: Stream, out: tuple[Output, ...]) -> tuple[Output, ...]:
        x, p = out[0].value, encoder.prefix
        sizes = None if stream.sizes is None else stream.sizes[:, p:]
        mean = pooled_mean(x[:, p:], sizes)
        return (Output(model.classifier(torch.cat([x[:, 0], mean], dim=1))),)

    return _with_head(encoder, extra)


# ---- open_clip, torchvision ----------------------------------------------------------------------


def _open_clip(model: Any) -> Encoder:
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
            _mha_block(b.ln_1, b.attn, b.ln_2, b.mlp, b.ls_1, b.ls_2)
            for b in model.transformer.resblocks
        ),
        norm=_identity if model.final_ln_after_pool else model.ln_post,
        head=head,
    )


def _torchvision(model: Any) -> Encoder:
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
            _mha_block(b.ln_1, b.self_attention, b.ln_2, b.mlp) for b in model.encoder.layers
        ),
        norm=model.encoder.ln,
        head=head,
    )


# ---- our own -------------------------------------------------------------------------------------


def _biased(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (_heads(part, layer.heads) for part in layer.qkv(layer.norm1(x)).chunk(3, -1))
            return q, k, v

        return Block(
            qkv=qkv,
            scale=(layer.qkv.in_features // layer.heads) ** -0.5,
            attend=lambda x, context: x + layer.proj(context),
            mlp=lambda x: x + layer.mlp(layer.norm2(x)),
            bias=layer.bias,
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


def _glyphs(model: Any) -> Encoder:
    def block(layer: Any) -> Block:
        attn = layer.attn

        def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (_heads(part, attn.heads) for part in attn.qkv(layer.norm1(x)).chunk(3, -1))
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


_ADAPTERS: dict[str, Callable[[Any], Encoder]] = {
    "timm.VisionTransformerDistilled": _timm_distilled,
    "timm.VisionTransformer": _timm,
    "transformers.ViTModel": _hf_vit,
    "transformers.ViTForImageClassification": _hf_vit_classifier,
    "transformers.DeiTModel": lambda model: _hf_vit(model, 2),
    "transformers.DeiTForImageClassification": _hf_deit_classifier,
    "transformers.DeiTForImageClassificationWithTeacher": _hf_deit_teacher,
    "transformers.CLIPVisionModel": _hf_clip,
    "transformers.CLIPVisionModelWithProjection": _hf_clip_projection,
    "transformers.SiglipVisionModel": _hf_siglip,
    "transformers.SiglipForImageClassification": _hf_siglip_classifier,
    "transformers.Dinov2Model": _hf_dinov2,
    "transformers.Dinov2ForImageClassification": _hf_dinov2_classifier,
    "transformers.Dinov2WithRegistersModel": _hf_dinov2,
    "transformers.Dinov2WithRegistersForImageClassification": _hf_dinov2_classifier,
    "open_clip.VisionTransformer": _open_clip,
    "torchvision.VisionTransformer": _torchvision,
    "tcompile.GlyphViT": _glyphs,
    "tests.BiasedViT": _biased,
}
