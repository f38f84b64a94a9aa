"""Vision-language models of transformers, tiny and with random weights, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

IMAGE, VIDEO, START, END, VOCABULARY = 90, 91, 92, 93, 100
WIDTH, LAYERS = 64, 2
_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_MROPE = {**_ROPE, "mrope_section": [2, 3, 3]}
_PACKED = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def _llama(**more: Any) -> dict[str, Any]:
    return {**_TEXT, "model_type": "llama", "rope_parameters": _ROPE, **more}


#: Kind of model → class in transformers, and its configuration.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "Llava",
        {
            "vision_config": {**_TOWER, "model_type": "clip_vision_model"},
            "text_config": _llama(),
            "image_token_index": IMAGE,
        },
    ),
    "llava-siglip": (
        "Llava",
        {
            "vision_config": _SIGLIP,
            "text_config": _llama(),
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
    ),
    "paligemma": (
        "PaliGemma",
        {
            "vision_config": {**_SIGLIP, "projection_dim": WIDTH},
            "text_config": {**_TEXT, "model_type": "gemma", "rope_parameters": _ROPE},
            "projection_dim": WIDTH,
            "image_token_index": IMAGE,
        },
    ),
    "internvl": (
        "InternVL",
        {
            "vision_config": {
                **_TOWER,
                "model_type": "internvl_vision",
                "image_size": [32, 32],
                "patch_size": [4, 4],
            },
            "text_config": {**_TEXT, "model_type": "qwen2", "rope_parameters": _ROPE},
            "image_token_id": IMAGE,
        },
    ),
    "smolvlm": (
        "SmolVLM",
        {
            "vision_config": {**_TOWER, "patch_size": 4, "model_type": "smolvlm_vision"},
            "text_config": _llama(),
            "scale_factor": 2,
            "image_token_id": IMAGE,
        },
    ),
    "idefics3": (
        "Idefics3",
        {
            "vision_config": {**_TOWER, "patch_size": 4, "model_type": "idefics3_vision"},
            "text_config": _llama(),
            "scale_factor": 2,
            "image_token_id": IMAGE,
        },
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "vision_config": {
                **_PACKED,
                "depth": 2,
                "embed_dim": 32,
                "mlp_ratio": 1,
                "hidden_size": WIDTH,
            },
            "text_config": {**_TEXT, "rope_parameters": _MROPE},
            **_QWEN,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "vision_config": {
                **_PACKED,
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 32,
                "out_hidden_size": WIDTH,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            "text_config": {**_TEXT, "rope_parameters": _MROPE},
            **_QWEN,
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "vision_config": {
                **_PACKED,
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 32,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            "text_config": {**_TEXT, "rope_parameters": _MROPE},
            **_QWEN,
        },
    ),
}
CONFIGS["qwen3_vl_moe"] = (
    "Qwen3VLMoe",
    {
        **CONFIGS["qwen3_vl"][1],
        "text_config": {
            **_TEXT,
            "rope_parameters": _MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    },
)
#: (time, height, width) in patches of the images of a Qwen prompt: of three sizes.
GRIDS = ((1, 8, 8), (1, 4, 8), (1, 8, 4))


@cache
def tiny_vlm(kind: str) -> Any:
    """A model of a kind, whose weights are large enough for positions to matter."""
    import transformers

    name, config = CONFIGS[kind]
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    config_class = model_class.config_class
    model = model_class(config_class(**config, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        model.lm_head.weight[IMAGE:] = 0.0  # is never the best: that token is not written
    model.generation_config.eos_token_id = None
    model.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Prompt:
    """What a processor would give, and how many tokens each image has, in the order of reading."""

    inputs: dict[str, torch.Tensor]
    sizes: tuple[int, ...]


def prompt(kind: str, rows: Sequence[int]) -> Prompt:
    """A batch of prompts with so many images each, filled up on the left.

    Args:
        kind: see `CONFIGS`.
        rows: how many images each row has.
    """
    is_packed = kind.startswith("qwen")
    grids = [GRIDS[i % len(GRIDS)] for i in range(sum(rows))]
    sizes = [t * h * w // 4 if is_packed else 16 for t, h, w in grids]
    generator = torch.Generator().manual_seed(sum(rows))
    lines, number = [], 0
    for images in rows:
        line = torch.randint(2, 80, (3,), generator=generator).tolist()
        for _ in range(images):
            line += [START, *[IMAGE] * sizes[number], END]
            line += torch.randint(2, 80, (2,), generator=generator).tolist()
            number += 1
        lines.append(line)
    longest = max(map(len, lines))
    ids = torch.tensor([[0] * (longest - len(line)) + line for line in lines])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if is_packed:
        pixels = torch.randn(sum(t * h * w for t, h, w in grids), 96, generator=generator)
        inputs |= {"image_grid_thw": torch.tensor(grids)}
        inputs |= {"mm_token_type_ids": (ids == IMAGE).int()}
    elif kind in ("smolvlm", "idefics3"):
        pixels = torch.randn(len(rows), max(rows), 3, 32, 32, generator=generator)
        for row, images in zip(pixels, rows, strict=True):
            row[images:] = 0.0  # there is no image
    else:
        pixels = torch.randn(sum(rows), 3, 32, 32, generator=generator)
    if kind == "paligemma":
        # The prefix is seen in both directions, what follows the last image is the answer.
        inputs["token_type_ids"] = (ids != 0).long() * (ids == END).long().cumsum(1).clamp(max=1)
    return Prompt({**inputs, "pixel_values": pixels}, tuple(sizes))


def llava_processor() -> Any:
    """A processor for the `llava` of `tiny_vlm`, whose words are `w7`, `w8`, …"""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<image>" if i == IMAGE else f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    side = _TOWER["image_size"]
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="w0",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=_TOWER["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for message in messages %}{% for part in message['content'] %}"
        "{{ '<image> ' if part['type'] == 'image' else part['text'] }}"
        "{% endfor %}{% endfor %}",
    )
