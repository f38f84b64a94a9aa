"""The towers that `hf_packed` loads, as data: where they are in transformers, what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tcompile.models import packed_images
from tcompile.models.packed import Ready
from tcompile.models.packed_grid import qwen

_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


@dataclass(frozen=True)
class PackedFamily:
    """One kind of tower.

    Attributes:
        package: of the model, in transformers.
        model_class: of the tower, in that package.
        make: from the tower, the asked image size and the options of `options`.
        statistics: mean and std of the family's images, for a checkpoint that does not say.
        options: options that are not fields of the configuration.
        fields: what the options common to all libraries are called in the configuration; one
            option may set several fields.
        defaults: where the library's own default configuration is not a sound one.
        layers: lists of layer indices, which follow a change of depth; True where the last layer
            is one of them.
        weights: how the tower's weights start in a checkpoint of the whole model.
    """

    package: str
    model_class: str
    make: Callable[[Any, int | None, Mapping[str, Any]], Ready]
    statistics: tuple[list[float], list[float]]
    options: tuple[str, ...]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, bool] = field(default_factory=dict)
    weights: str = r"^(thinker\.)?(model\.)?visual\."


_QWEN2 = {"embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads"}
_QWEN3 = {**_QWEN2, "embed_dim": "hidden_size", "output_dim": "out_hidden_size"}
_GRID = ("grid", "frames")
QWEN2 = PackedFamily(
    "qwen2_vl",
    "Qwen2VisionTransformerPretrainedModel",
    qwen,
    _CLIP,
    _GRID,
    {**_QWEN2, "output_dim": "hidden_size"},
)
QWEN25 = PackedFamily(
    "qwen2_5_vl",
    "Qwen2_5_VisionTransformerPretrainedModel",
    qwen,
    _CLIP,
    _GRID,
    _QWEN3,
    # transformers' default is the width of the language model; this is the released tower's.
    defaults={"hidden_size": 1280},
    layers={"fullatt_block_indexes": True},
)
QWEN3 = PackedFamily(
    "qwen3_vl",
    "Qwen3VLVisionModel",
    qwen,
    _HALF,
    _GRID,
    _QWEN3,
    layers={"deepstack_visual_indexes": False},
)

# The same towers under other names; GLM-OCR has no window, EXAONE shares keys among heads.
QWEN25_OMNI = replace(QWEN25, package="qwen2_5_omni", model_class="Qwen2_5OmniVisionEncoder")
QWEN3_MOE = replace(QWEN3, package="qwen3_vl_moe", model_class="Qwen3VLMoeVisionModel")
QWEN3_OMNI = replace(QWEN3, package="qwen3_omni_moe", model_class="Qwen3OmniMoeVisionEncoder")
QWEN35 = replace(QWEN3, package="qwen3_5", model_class="Qwen3_5VisionModel")
QWEN35_MOE = replace(QWEN3, package="qwen3_5_moe", model_class="Qwen3_5MoeVisionModel")
GLM_OCR = replace(QWEN2, package="glm_ocr", model_class="GlmOcrVisionModel", fields=_QWEN3)
EXAONE45 = replace(
    QWEN25,
    package="exaone4_5",
    model_class="Exaone4_5_VisionModel",
    fields={**_QWEN3, "num_heads": "num_heads num_key_value_heads"},
)

_HF = {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
PIXTRAL = PackedFamily(
    "pixtral",
    "PixtralVisionModel",
    packed_images.pixtral,
    _CLIP,
    ("packed",),
    _HF,
    weights=r"^(model\.)?(vision_tower|vision_encoder)\.",
)
MLLAMA = PackedFamily(
    "mllama",
    "MllamaVisionModel",
    packed_images.mllama,
    _CLIP,
    ("aspect",),
    {**_HF, "num_heads": "attention_heads"},
    layers={"intermediate_layers_indices": False},
    weights=r"^(model\.)?vision_model\.",
)
LLAMA4 = PackedFamily(
    "llama4",
    "Llama4VisionModel",
    packed_images.llama4,
    _HALF,
    (),
    {**_HF, "output_dim": "projector_input_dim projector_output_dim"},
    # transformers' default width does not fit the rest of its default; this is the released one.
    defaults={"hidden_size": 1408},
    weights=r"^(model\.)?vision_model\.",
)

PACKED_FAMILIES: Mapping[str, PackedFamily] = {
    "qwen2-vl": QWEN2,
    "qwen2.5-vl": QWEN25,
    "qwen2.5-omni": QWEN25_OMNI,
    "qwen3-vl": QWEN3,
    "qwen3-vl-moe": QWEN3_MOE,
    "qwen3-omni": QWEN3_OMNI,
    "qwen3.5": QWEN35,
    "qwen3.5-moe": QWEN35_MOE,
    "glm-ocr": GLM_OCR,
    "exaone4.5": EXAONE45,
    "pixtral": PIXTRAL,
    "mllama-vision": MLLAMA,
    "llama4-vision": LLAMA4,
}
#: By `model_type` of a checkpoint: of the whole model, or of its tower alone.
TYPES: Mapping[str, PackedFamily] = {
    "qwen2_vl": QWEN2,
    "qwen2_vl_vision": QWEN2,
    "qwen2_5_vl": QWEN25,
    "qwen2_5_vl_vision": QWEN25,
    "qwen2_5_omni": QWEN25_OMNI,
    "qwen2_5_omni_thinker": QWEN25_OMNI,
    "qwen2_5_omni_vision_encoder": QWEN25_OMNI,
    "qwen3_vl": QWEN3,
    "qwen3_vl_vision": QWEN3,
    "qwen3_vl_moe": QWEN3_MOE,
    "qwen3_vl_moe_vision": QWEN3_MOE,
    "qwen3_omni_moe": QWEN3_OMNI,
    "qwen3_omni_moe_thinker": QWEN3_OMNI,
    "qwen3_omni_moe_vision_encoder": QWEN3_OMNI,
    "qwen3_5": QWEN35,
    "qwen3_5_vision": QWEN35,
    "qwen3_5_moe": QWEN35_MOE,
    "qwen3_5_moe_vision": QWEN35_MOE,
    "glm_ocr": GLM_OCR,
    "glm_ocr_vision": GLM_OCR,
    "exaone4_5": EXAONE45,
    "exaone4_5_vision": EXAONE45,
    "pixtral": PIXTRAL,
    "mistral3": PIXTRAL,
    "mllama": MLLAMA,
    "mllama_vision_model": MLLAMA,
    "llama4": LLAMA4,
    "llama4_vision_model": LLAMA4,
}
