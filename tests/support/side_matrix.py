"""Cases whose blocks read more than the stream: rotary positions, relative bias, masks; and blocks
of another build. Data for `zoo_matrix`, with fewer exports of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.matrix_case import TORCH, TORCH_AND_HF, Case

_TIMM = {"depth": 3, "embed_dim": 64, "num_heads": 2, "num_classes": 10, "patch_size": 16}


def _side(
    name: str,
    prefix: int,
    label: str,
    family: str,
    *,
    refused: Mapping[str, str] | None = None,
    notes: str = "",
    few: int = 1,
    **over: Any,
) -> Case:
    """A timm model whose blocks read more than the stream: 7 x 7 patches of 16."""
    overrides = {**_TIMM, **over}
    return Case(
        f"timm-{label}",
        f"timm {family}",
        f"timm:{name}",
        112,
        overrides,
        prefix,
        49,
        notes=notes,
        refused=refused or {},
        few=few,
    )


def _tower(
    word: str,
    prefix: int,
    label: str | None = None,
    *,
    exporters: tuple[str, ...] = TORCH_AND_HF,
    refused: Mapping[str, str] | None = None,
    notes: str = "",
    few: int = 1,
    side: int = 7,
    **over: Any,
) -> Case:
    """An image tower of transformers: side x side patches of 8."""
    overrides = {"depth": 3, "embed_dim": 40, "num_heads": 2, "patch_size": 8, **over}
    return Case(
        f"hf-{label or word}",
        f"transformers {word}",
        f"hf:{word}",
        8 * side,
        overrides,
        prefix,
        side**2,
        exporters=exporters,
        notes=notes,
        refused=refused or {},
        few=few,
    )


#: A fused token has no row in a table of pairs of tokens.
_NO_ROW = {"evit": "fused token"}
_QFORMER = {
    "qformer_config.num_hidden_layers": 2,
    "qformer_config.hidden_size": 24,
    "qformer_config.num_attention_heads": 2,
    "qformer_config.intermediate_size": 48,
    "num_query_tokens": 6,
}
#: Only whole groups of patches can leave.
_GROUPED = {"evit": "group", "tome": "group"}
_PAIRS: dict[str, Any] = {"side": 8, "projection_dim": 24, "refused": _GROUPED}
SIDE_CASES: tuple[Case, ...] = (
    _side("eva_giant_patch14_224", 1, "eva", "EVA"),
    _side(
        "eva02_tiny_patch14_224",
        1,
        "eva02",
        "EVA-02",
        few=2,
        notes="interleaved RoPE, packed SwiGLU",
    ),
    _side(
        "eva02_base_patch16_clip_224",
        1,
        "eva02-clip",
        "EVA-02",
        swiglu_align_to=8,
        notes="reads CLS; q, k, v apart, norms inside attention and MLP",
    ),
    _side("eva02_tiny_patch14_224", 1, "eva02-norms-after", "EVA-02", use_post_norm=True),
    _side(
        "vit_small_patch16_dinov3",
        5,
        "dinov3",
        "DINOv3",
        few=2,
        notes="half-split RoPE, LayerScale",
    ),
    _side(
        "vit_small_plus_patch16_dinov3_qkvb",
        5,
        "dinov3-plus",
        "DINOv3",
        global_pool="token",
        notes="SwiGLU",
    ),
    _side("vit_small_patch16_rope_224", 1, "rope", "vit_*_rope*"),
    _side("vit_small_patch16_rope_ape_224", 1, "rope-ape", "vit_*_rope*"),
    _side(
        "vit_small_patch16_rope_mixed_224",
        1,
        "rope-mixed",
        "vit_*_rope*",
        notes="a table for each block and head",
    ),
    _side("vit_base_patch16_rope_reg1_gap_256", 1, "rope-reg1-gap", "vit_*_rope*"),
    _side(
        "vit_small_patch16_dinov3",
        5,
        "grouped-query",
        "DINOv3",
        attn_type="rope",
        qkv_fused=False,
        num_kv_heads=1,
        qk_norm=True,
        notes="keys and values shared by heads",
    ),
    _side(
        "vit_base_patch16_sapiens2",
        9,
        "sapiens2",
        "Sapiens2",
        num_kv_heads=1,
        notes="the same, with RMSNorm",
    ),
    _side(
        "vit_pe_core_tiny_patch16_384",
        1,
        "pe-core",
        "PE",
        attn_pool_num_heads=2,
        notes="attention pool over all tokens",
    ),
    _side("vit_pe_spatial_tiny_patch16_512", 1, "pe-spatial", "PE"),
    _side("beit_base_patch16_224", 1, "beit", "BEiT", few=2, refused=_NO_ROW),
    _side("beitv2_base_patch16_224", 1, "beitv2-cls", "BEiT", refused=_NO_ROW, global_pool="token"),
    _side(
        "beit_base_patch16_224",
        1,
        "beit-shared",
        "BEiT",
        refused=_NO_ROW,
        use_shared_rel_pos_bias=True,
        use_rel_pos_bias=False,
        notes="one table for all blocks",
    ),
    _side("beit3_base_patch16_224", 1, "beit3", "BEiT", notes="norms inside attention and MLP"),
    _side("vit_relpos_small_patch16_224", 0, "relpos", "vit_relpos", refused=_NO_ROW),
    _side("vit_srelpos_small_patch16_224", 0, "srelpos", "vit_relpos", refused=_NO_ROW),
    _side(
        "vit_relpos_base_patch16_clsgap_224",
        1,
        "relpos-cls",
        "vit_relpos",
        refused=_NO_ROW,
        notes="the bias is padded for CLS",
    ),
    _side("vit_small_patch16_36x1_224", 1, "vit-qk-norm", "vit", qk_norm=True),
    _side(
        "vit_pwee_patch16_reg1_gap_256",
        1,
        "parallel",
        "vit parallel blocks",
        notes="attention and MLP side by side; a register, no CLS",
    ),
    _side("vit_base_patch16_xp_224", 1, "parallel-rms", "vit parallel blocks", notes="RMSNorm"),
    _side("vit_base_patch16_rpn_224", 0, "norms-after", "vit"),
    _tower("dinov3", 5, few=2, notes="registers; RoPE on the patches"),
    _tower("dinov3", 1, "dinov3-gated", reg_tokens=0, use_gated_mlp=True),
    _tower("beit", 1, refused=_NO_ROW, notes="average pool"),
    _tower(
        "beit",
        1,
        "beit-cls",
        refused=_NO_ROW,
        use_mean_pooling=False,
        use_shared_relative_position_bias=True,
        use_relative_position_bias=False,
    ),
    _tower("beit-classify", 1, refused=_NO_ROW, num_classes=7),
    _tower("pixtral", 0, exporters=TORCH, notes="2-D RoPE on all tokens, RMSNorm, SwiGLU"),
    _tower("siglip2-vision", 0, notes="patches made in the graph; attention-pool head"),
    _tower("blip2-vision", 1, notes="q, k, v by Gather"),
    _tower("blip2-qformer", 1, notes="learnt queries read the tokens", **_QFORMER),
    _tower("llava", 1, projection_dim=24, notes="the last block is dead; CLS is dropped"),
    _tower("paligemma-vision", 0, projection_dim=24),
    _tower("internvl-vision", 1, "internvl", notes="LayerScale"),
    _tower("internvl-vision", 1, "internvl-qk-norm", use_qk_norm=True, norm_type="rms_norm"),
    _tower("idefics3-vision", 0),
    _tower("smolvlm-vision", 0),
    _tower("internvl-projector", 1, **_PAIRS, notes="CLS is dropped; pixel shuffle"),
    _tower("idefics3-connector", 0, **_PAIRS, notes="pixel shuffle"),
    _tower("smolvlm-connector", 0, **_PAIRS, notes="pixel shuffle of 4 x 4"),
    _tower("gemma3-vision", 0, **_PAIRS, notes="average pool of 4 x 4"),
    _tower(
        "llama4-vision",
        0,
        side=8,
        exporters=TORCH,
        refused=_GROUPED,
        projector_input_dim=24,
        projector_output_dim=24,
        intermediate_size=160,
        notes="class token behind the patches; RoPE in complex numbers; pixel shuffle",
    ),
)
