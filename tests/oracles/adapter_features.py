"""Adapters for `Features` and `QueryReader` of `tcompile.models.hf_towers`: an image tower of
transformers and the modules that carry its tokens into a language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.oracles import adapter_groups
from tests.oracles.adapter_hf import hf_clip, hf_siglip
from tests.oracles.adapter_parts import identity, split_heads
from tests.oracles.adapter_towers import blip2
from tests.oracles.stream import Encoder, Output, Stream, attention


def features(model: Any) -> Encoder:
    """Told apart by the class of what stands behind the tower. LookupError for others."""
    for part in model.parts.values():
        if type(part).__name__ in _BEHIND:
            return _BEHIND[type(part).__name__](model)
    raise LookupError(f"no adapter for {[type(part).__name__ for part in model.parts.values()]}")


def _llava(model: Any) -> Encoder:
    """The last block and the norm after it are dead: the projector reads what enters that block."""
    tower = hf_clip(model.tower)
    return replace(
        tower,
        # The class token is dropped, so nothing says what it has learnt.
        cls=False,
        blocks=tower.blocks[:-1],
        norm=identity,
        head=lambda stream: (Output(model.parts["projector"](stream.x[:, 1:]), 1),),
    )


def _paligemma(model: Any) -> Encoder:
    return replace(
        hf_siglip(model.tower), head=lambda stream: (Output(model.parts["projector"](stream.x), 0),)
    )


def qformer(model: Any) -> Encoder:
    """BLIP-2: learnt queries read the image in some layers, a merged token as often as its size."""
    tower, former = blip2(model.tower), model.qformer
    queries = model.query_tokens

    def read(attn: Any, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        own, heads = attn.attention, attn.attention.num_attention_heads
        q, k, v = (
            split_heads(p, heads) for p in (own.query(x), own.key(memory), own.value(memory))
        )
        context = attention(q, k, v, own.scaling, bias)
        return attn.output.LayerNorm(attn.output.dense(context) + x)

    def head(stream: Stream) -> tuple[Output, ...]:
        x = former.layernorm(queries.expand(len(stream.x), -1, -1))
        for layer in former.encoder.layer:
            x = read(layer.attention, x, x, None)
            if layer.has_cross_attention:
                x = read(layer.crossattention, x, stream.x, stream.key_bias())
            y = layer.output_query.dense(layer.intermediate_query(x))
            x = layer.output_query.LayerNorm(y + x)
        return (Output(x),)

    return replace(tower, cls=False, head=head)


_BEHIND: dict[str, Callable[[Any], Encoder]] = {
    "LlavaMultiModalProjector": _llava,
    "PaliGemmaMultiModalProjector": _paligemma,
    "InternVLMultiModalProjector": adapter_groups.internvl_projector,
    "Idefics3Connector": adapter_groups.idefics3_connector,
    "SmolVLMConnector": adapter_groups.idefics3_connector,
    "Gemma3MultiModalProjector": adapter_groups.gemma3,
}
