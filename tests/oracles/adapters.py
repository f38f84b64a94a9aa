"""Turns a model of each library into the oracles' `Encoder`, by calling its submodules.

Nothing here knows ONNX.  `adapt` finds the model inside whatever wrapper an exporter put around it;
`select_outputs` then says which of the encoder's outputs the wrapper returns, by comparing values,
which at the same time proves the adapter right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.oracles import (
    adapter_bias,
    adapter_features,
    adapter_groups,
    adapter_hf,
    adapter_others,
    adapter_packed,
    adapter_rope,
    adapter_timm,
    adapter_towers,
    adapter_video,
    adapter_windows,
    map_vit,
)
from tests.oracles.methods import run
from tests.oracles.stream import Encoder


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
    candidates = run(encoder, image, ()).outputs
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


_ADAPTERS: dict[str, Callable[[Any], Encoder]] = {
    "timm.VisionTransformerDistilled": adapter_timm.timm_distilled,
    "timm.VisionTransformer": adapter_timm.timm,
    "timm.VisionTransformerRelPos": adapter_bias.timm_relpos,
    "timm.Beit": adapter_bias.timm_beit,
    "timm.Eva": adapter_rope.eva,
    "transformers.ViTModel": adapter_hf.hf_vit,
    "transformers.ViTForImageClassification": adapter_hf.hf_vit_classifier,
    "transformers.DeiTModel": lambda model: adapter_hf.hf_vit(model, 2),
    "transformers.DeiTForImageClassification": adapter_hf.hf_deit_classifier,
    "transformers.DeiTForImageClassificationWithTeacher": adapter_hf.hf_deit_teacher,
    "transformers.CLIPVisionModel": adapter_hf.hf_clip,
    "transformers.CLIPVisionModelWithProjection": adapter_hf.hf_clip_projection,
    "transformers.SiglipVisionModel": adapter_hf.hf_siglip,
    "transformers.SiglipForImageClassification": adapter_hf.hf_siglip_classifier,
    "transformers.Dinov2Model": adapter_hf.hf_dinov2,
    "transformers.Dinov2ForImageClassification": adapter_hf.hf_dinov2_classifier,
    "transformers.Dinov2WithRegistersModel": adapter_hf.hf_dinov2,
    "transformers.Dinov2WithRegistersForImageClassification": adapter_hf.hf_dinov2_classifier,
    "transformers.DINOv3ViTModel": adapter_towers.dinov3,
    "transformers.PixtralVisionModel": adapter_towers.pixtral,
    "transformers.BeitModel": adapter_towers.beit,
    "transformers.BeitForImageClassification": adapter_towers.beit_classifier,
    "transformers.Blip2VisionModel": adapter_towers.blip2,
    "transformers.Idefics3VisionTransformer": adapter_towers.idefics3,
    "transformers.SmolVLMVisionTransformer": adapter_towers.idefics3,
    "transformers.InternVLVisionModel": adapter_towers.internvl,
    "transformers.Llama4VisionModel": adapter_groups.llama4,
    "transformers.VideoMAEModel": adapter_video.videomae,
    "transformers.SamVisionEncoder": adapter_windows.sam,
    "timm.VisionTransformerSAM": adapter_windows.timm_sam,
    "tcompile.QueryReader": adapter_features.qformer,
    "tcompile.Features": adapter_features.features,
    "tcompile.Siglip2Image": adapter_towers.siglip2,
    "open_clip.VisionTransformer": adapter_others.open_clip,
    "torchvision.VisionTransformer": adapter_others.torchvision,
    "tcompile.GlyphViT": adapter_others.glyphs,
    "tests.MapViT": map_vit.maps,
    "tests.Alone": lambda alone: adapter_packed.qwen(alone.model),
    "tests.OddViT": adapter_others.odd,
    "tests.MaskedViT": adapter_others.masked,
    "tests.BiasedViT": adapter_others.biased,
}
