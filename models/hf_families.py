"""The part of a transformers model that a name or a checkpoint stands for, as data.

`hf:NAME --random-weights` makes the model of `FAMILIES[NAME]`; a checkpoint is read as the one that
`TYPES` gives for its `model_type`, or as the one asked for (`hf:OWNER/MODEL?part=NAME`). Of models
that also read text only the image half is made; the language model stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tcompile.models import hf_towers as towers


@dataclass(frozen=True)
class Family:
    """One kind of image model.

    Attributes:
        model: transformers' class of it, or of the model it is cut out of.
        inside: of a bare tower: the class of the model that it is a part of, and which part. A
            checkpoint of that class holds it too.
        cut: from a model of class `model` and the image's height and width, what is exported;
            None where that is the model as it is.
        config: what released checkpoints have where the class's defaults differ; dots lead inside.
    """

    model: str
    inside: tuple[str, str] | None = None
    cut: Callable[[Any, tuple[int, int]], nn.Module] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def of_class(transformers: Any, name: str) -> Family:
    """Return a model class without a name of its own: as it is, or the image features of a joint
    model of images and text.

    Its configuration differs from the defaults as that of a family with the same class of
    configuration does.
    """
    model_class = getattr(transformers, name)
    kin = [
        family.config
        for family in FAMILIES.values()
        if getattr(transformers, family.model).config_class is model_class.config_class
    ]
    is_joint = hasattr(model_class, "get_image_features")
    return Family(name, cut=towers.ImageFeatures if is_joint else None, config=(kin or [{}])[0])


def empty_text(config: Any) -> None:
    """Leave nothing of the language model but its width, which projectors take their size from."""
    text = getattr(config, "text_config", None)
    if text is None:
        return
    for name, value in _NO_TEXT.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)


_NO_TEXT: Mapping[str, Any] = {
    "num_hidden_layers": 0,
    "layer_types": [],
    "vocab_size": 8,
    "pad_token_id": 0,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


_SO400M = {
    "vision_config.hidden_size": 1152,
    "vision_config.intermediate_size": 4304,
    "vision_config.num_hidden_layers": 27,
    "vision_config.num_attention_heads": 16,
    "vision_config.patch_size": 14,
}
_IDEFICS3 = {**_SO400M, "vision_config.image_size": 364, "text_config.hidden_size": 4096}
_SMOLVLM = {
    "vision_config.hidden_size": 768,
    "vision_config.num_attention_heads": 12,
    "vision_config.image_size": 512,
    "vision_config.patch_size": 16,
    "text_config.hidden_size": 576,
    "scale_factor": 4,
}
_GEMMA3 = {
    **_SO400M,
    "vision_config.image_size": 896,
    "vision_config.vision_use_head": False,
    "mm_tokens_per_image": 256,
}
_BEIT = {"use_relative_position_bias": True}
# These classes start from weights of 1e-10, which make every image look the same.
_AWAKE = {"initializer_range": 0.02}


def _bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """The image tower's share of a configuration."""
    head = "vision_config."
    return {k.removeprefix(head): v for k, v in config.items() if k.startswith(head)}


FAMILIES: Mapping[str, Family] = {
    "vit": Family("ViTModel"),
    "vit-classify": Family("ViTForImageClassification"),
    "deit": Family("DeiTModel"),
    "deit-classify": Family("DeiTForImageClassification"),
    "deit-distilled": Family("DeiTForImageClassificationWithTeacher"),
    "beit": Family("BeitModel", config=_BEIT),
    "beit-classify": Family("BeitForImageClassification", config=_BEIT),
    "dinov2": Family("Dinov2Model"),
    "dinov2-classify": Family("Dinov2ForImageClassification"),
    "dinov2-registers": Family("Dinov2WithRegistersModel"),
    "dinov2-registers-classify": Family("Dinov2WithRegistersForImageClassification"),
    "dinov3": Family("DINOv3ViTModel", config={"num_register_tokens": 4}),
    "clip-vision": Family("CLIPVisionModel"),
    "clip-vision-projection": Family("CLIPVisionModelWithProjection"),
    "siglip-vision": Family("SiglipVisionModel"),
    "siglip-classify": Family("SiglipForImageClassification"),
    "siglip2-vision": Family("Siglip2VisionModel", cut=towers.Siglip2Image),
    "blip-vision": Family("BlipVisionModel"),
    "blip2-vision": Family(
        "Blip2VisionModel", inside=("Blip2VisionModelWithProjection", "vision_model"), config=_AWAKE
    ),
    "blip2-qformer": Family(
        "Blip2VisionModelWithProjection",
        cut=towers.QueryReader,
        config={"vision_config.initializer_range": 0.02},
    ),
    "llava": Family("LlavaModel", cut=towers.llava),
    "llava-next": Family("LlavaNextModel", cut=towers.llava),
    "llava-onevision": Family("LlavaOnevisionModel", cut=towers.llava),
    "paligemma-vision": Family("PaliGemmaModel", cut=towers.last_layer),
    "gemma3-vision": Family("Gemma3Model", cut=towers.last_layer, config=_GEMMA3),
    "internvl-vision": Family("InternVLVisionModel", inside=("InternVLModel", "vision_tower")),
    "internvl-projector": Family("InternVLModel", cut=towers.internvl),
    "idefics3-vision": Family(
        "Idefics3VisionTransformer",
        inside=("Idefics3Model", "vision_model"),
        cut=towers.Idefics3Tower,
        config=_bare(_IDEFICS3),
    ),
    "idefics3-connector": Family("Idefics3Model", cut=towers.connector, config=_IDEFICS3),
    "smolvlm-vision": Family(
        "SmolVLMVisionTransformer",
        inside=("SmolVLMModel", "vision_model"),
        cut=towers.Idefics3Tower,
        config=_bare(_SMOLVLM),
    ),
    "smolvlm-connector": Family("SmolVLMModel", cut=towers.connector, config=_SMOLVLM),
    "sam-vision": Family("SamVisionModel", cut=towers.sam, config=_AWAKE),
}
# What a checkpoint of a `model_type` is read as; all others: the classifier or the encoder it is.
TYPES: Mapping[str, str] = {
    "clip": "clip-vision-projection",
    "clip_vision_model": "clip-vision",
    "siglip": "siglip-vision",
    "siglip2": "siglip2-vision",
    "siglip2_vision_model": "siglip2-vision",
    "blip": "blip-vision",
    "blip-2": "blip2-qformer",
    "blip_2_vision_model": "blip2-vision",
    "llava": "llava",
    "llava_next": "llava-next",
    "llava_onevision": "llava-onevision",
    "paligemma": "paligemma-vision",
    "gemma3": "gemma3-vision",
    "internvl": "internvl-projector",
    "internvl_vision": "internvl-vision",
    "idefics3": "idefics3-connector",
    "idefics3_vision": "idefics3-vision",
    "smolvlm": "smolvlm-connector",
    "smolvlm_vision": "smolvlm-vision",
    "sam": "sam-vision",
    "sam_vision_model": "sam-vision",
}
