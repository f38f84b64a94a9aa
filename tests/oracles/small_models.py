"""One tiny model a family, straight from its library, for the oracles' own tests.

Sizes are odd on purpose: 5 heads of 8 and 36 or 25 patches coincide with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tests.oracles.odd_vit import Odd, OddViT

IMAGE = 48


def _timm(name: str, **overrides: Any) -> nn.Module:
    import timm

    plan = {"img_size": IMAGE, "depth": 4, "embed_dim": 40, "num_heads": 5, "num_classes": 7}
    # DINOv2 has no classifier, and asks for patches of 14 where the others have 16.
    return timm.create_model(name, pretrained=False, **{**plan, "patch_size": 8, **overrides})


def _blocks(name: str) -> Any:
    from timm.models import vision_transformer

    return getattr(vision_transformer, name)


_TOWER = {
    "hidden_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "intermediate_size": 96,
    "image_size": IMAGE,
    "patch_size": 8,
}


_PAIRS = {"image_size": (IMAGE, IMAGE), "patch_size": (8, 8)}


def _hf(model: str, config: str, **overrides: Any) -> nn.Module:
    import transformers

    plan = {**_TOWER, "projection_dim": 24, "num_labels": 7}
    made = getattr(transformers, config)(**{**plan, **overrides})
    return getattr(transformers, model)(made)


def _open_clip(**overrides: Any) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    plan: dict[str, Any] = {
        "image_size": IMAGE,
        "patch_size": 8,
        "width": 40,
        "layers": 4,
        "heads": 5,
        "mlp_ratio": 2.0,
        "output_dim": 24,
    }
    return VisionTransformer(**{**plan, **overrides})


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=IMAGE,
        patch_size=8,
        num_layers=4,
        num_heads=5,
        hidden_dim=40,
        mlp_dim=96,
        num_classes=7,
    )


def _glyphs() -> nn.Module:
    from tcompile.models.glyphs.model import GlyphConfig, GlyphViT

    return GlyphViT(GlyphConfig(image_size=IMAGE, width=40, depth=4, heads=5))


def _biased() -> nn.Module:
    from tests.oracles.biased_vit import BiasedViT

    return BiasedViT(IMAGE)


def _masked(dark: bool) -> nn.Module:
    from tests.oracles.biased_vit import MaskedViT

    return MaskedViT(IMAGE, dark=dark)


ODD = {
    "suffix": Odd(before=0, after=1),
    "both-sides": Odd(before=2, after=3),
    "positions-each": Odd(positions="each"),
    "positions-late": Odd(positions="late"),
    "rotary": Odd(rotary=True),
    "rotary-suffix": Odd(before=0, after=1, rotary=True),
    "scaled": Odd(scaled=True),
    "parallel": Odd(parallel=True, scaled=True, rotary=True),
}


def _odd(plan: Odd) -> nn.Module:
    return OddViT(plan, IMAGE)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm-vit": lambda: _timm("vit_tiny_patch16_224"),
    "timm-vit-features": lambda: _timm("vit_tiny_patch16_224", global_pool="", num_classes=0),
    "timm-vit-qknorm": lambda: _timm("vit_tiny_patch16_224", qk_norm=True),
    "timm-gap": lambda: _timm("vit_base_patch16_gap_224"),
    "timm-reg4-gap": lambda: _timm("vit_medium_patch16_reg4_gap_256"),
    "timm-deit-distilled": lambda: _timm("deit_tiny_distilled_patch16_224"),
    "timm-deit3": lambda: _timm("deit3_small_patch16_224"),
    "timm-dinov2": lambda: _timm("vit_small_patch14_dinov2"),
    "timm-dinov2-reg4": lambda: _timm("vit_small_patch14_reg4_dinov2"),
    "timm-clip": lambda: _timm("vit_base_patch16_clip_224"),
    "timm-siglip": lambda: _timm("vit_base_patch16_siglip_224"),
    "timm-norms-after": lambda: _timm("vit_tiny_patch16_224", block_fn=_blocks("ResPostBlock")),
    "timm-parallel": lambda: _timm(
        "vit_tiny_patch16_224", block_fn=_blocks("ParallelScalingBlock"), qk_norm=True
    ),
    "timm-eva": lambda: _timm("eva_giant_patch14_224"),
    "timm-eva02": lambda: _timm("eva02_tiny_patch14_224"),
    "timm-eva02-clip": lambda: _timm("eva02_base_patch16_clip_224", swiglu_align_to=8),
    "timm-eva-norms-after": lambda: _timm("eva02_tiny_patch14_224", use_post_norm=True),
    "timm-eva-grouped": lambda: _timm(
        "vit_small_patch16_dinov3", attn_type="rope", qkv_fused=False, num_kv_heads=1, qk_norm=True
    ),
    "timm-dinov3": lambda: _timm("vit_small_patch16_dinov3"),
    "timm-dinov3-qkvb": lambda: _timm("vit_small_patch16_dinov3_qkvb"),
    "timm-rope": lambda: _timm("vit_small_patch16_rope_224"),
    "timm-rope-ape": lambda: _timm("vit_small_patch16_rope_ape_224"),
    "timm-rope-mixed": lambda: _timm("vit_small_patch16_rope_mixed_224"),
    "timm-rope-reg1-gap": lambda: _timm("vit_base_patch16_rope_reg1_gap_256"),
    "timm-pe-core": lambda: _timm("vit_pe_core_tiny_patch16_384", attn_pool_num_heads=5),
    "timm-pe-spatial": lambda: _timm("vit_pe_spatial_tiny_patch16_512"),
    "timm-beit": lambda: _timm("beit_base_patch16_224"),
    "timm-beit-shared": lambda: _timm(
        "beit_base_patch16_224", use_shared_rel_pos_bias=True, use_rel_pos_bias=False
    ),
    "timm-beit3": lambda: _timm("beit3_base_patch16_224"),
    "timm-relpos": lambda: _timm("vit_relpos_small_patch16_224"),
    "timm-relpos-norms-after": lambda: _timm("vit_relpos_small_patch16_rpn_224"),
    "timm-relpos-shared": lambda: _timm("vit_srelpos_small_patch16_224"),
    "timm-relpos-cls": lambda: _timm("vit_relpos_base_patch16_clsgap_224"),
    "hf-vit": lambda: _hf("ViTModel", "ViTConfig"),
    "hf-vit-classifier": lambda: _hf("ViTForImageClassification", "ViTConfig"),
    "hf-deit": lambda: _hf("DeiTModel", "DeiTConfig"),
    "hf-deit-classifier": lambda: _hf("DeiTForImageClassification", "DeiTConfig"),
    "hf-deit-teacher": lambda: _hf("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    "hf-clip": lambda: _hf("CLIPVisionModel", "CLIPVisionConfig"),
    "hf-clip-projection": lambda: _hf("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
    "hf-siglip": lambda: _hf("SiglipVisionModel", "SiglipVisionConfig"),
    "hf-siglip-classifier": lambda: _hf(
        "SiglipForImageClassification", "SiglipConfig", vision_config=_TOWER
    ),
    "hf-dinov2": lambda: _hf("Dinov2Model", "Dinov2Config"),
    "hf-dinov2-classifier": lambda: _hf("Dinov2ForImageClassification", "Dinov2Config"),
    "hf-dinov2-registers": lambda: _hf(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=4
    ),
    "hf-dinov3": lambda: _hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4),
    "hf-dinov3-gated": lambda: _hf(
        "DINOv3ViTModel", "DINOv3ViTConfig", use_gated_mlp=True, num_register_tokens=0
    ),
    "hf-pixtral": lambda: _hf("PixtralVisionModel", "PixtralVisionConfig"),
    "hf-beit": lambda: _hf("BeitModel", "BeitConfig", use_relative_position_bias=True),
    "hf-beit-cls": lambda: _hf(
        "BeitModel",
        "BeitConfig",
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        use_absolute_position_embeddings=True,
    ),
    "hf-beit-classifier": lambda: _hf(
        "BeitForImageClassification", "BeitConfig", use_relative_position_bias=True
    ),
    "hf-blip2": lambda: _hf("Blip2VisionModel", "Blip2VisionConfig"),
    "hf-idefics3": lambda: _hf("Idefics3VisionTransformer", "Idefics3VisionConfig"),
    "hf-smolvlm": lambda: _hf("SmolVLMVisionTransformer", "SmolVLMVisionConfig"),
    "hf-internvl": lambda: _hf("InternVLVisionModel", "InternVLVisionConfig", **_PAIRS),
    "hf-llama4": lambda: _hf(
        "Llama4VisionModel",
        "Llama4VisionConfig",
        projector_input_dim=24,
        projector_output_dim=24,
        intermediate_size=160,
    ),
    "hf-internvl-qk-norm": lambda: _hf(
        "InternVLVisionModel",
        "InternVLVisionConfig",
        use_qk_norm=True,
        norm_type="rms_norm",
        use_mean_pooling=False,
        **_PAIRS,
    ),
    "open-clip": _open_clip,
    "open-clip-tokens": lambda: _open_clip(output_tokens=True),
    "torchvision": _torchvision,
    "glyphs": _glyphs,
    "biased": _biased,
    **{f"odd-{name}": partial(_odd, plan) for name, plan in ODD.items()},
    "masked": lambda: _masked(dark=False),
    "masked-dark": lambda: _masked(dark=True),
}
