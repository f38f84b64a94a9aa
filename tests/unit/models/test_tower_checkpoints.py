"""Checkpoints of models of images and text: the image half is taken out, with its own weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tcompile.core.errors import ModelError
from tcompile.models import export, load_source

transformers = pytest.importorskip("transformers")

_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
}
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
_OPT = {
    "model_type": "opt",
    "hidden_size": 48,
    "word_embed_proj_dim": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
Answer = Callable[[Any, torch.Tensor], torch.Tensor]


def _projected(model: Any, images: torch.Tensor) -> torch.Tensor:
    found = model.model.get_image_features(images).pooler_output
    return found if isinstance(found, torch.Tensor) else torch.stack(list(found))


def _of_one_image_each(model: Any, images: torch.Tensor) -> torch.Tensor:
    return _projected(model, images[:, None])


def _queries(model: Any, images: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.get_image_features(images).qformer_outputs.last_hidden_state
    return found


def _naflex(model: Any, images: torch.Tensor) -> torch.Tensor:
    """As transformers' processor lays the patches out."""
    count = images.shape[0]
    rows = images.permute(0, 2, 3, 1).reshape(count, 8, 8, 8, 8, 3).transpose(2, 3)
    shapes = torch.tensor([[8, 8]] * count)
    mask = torch.ones(count, 64)
    found: torch.Tensor = model.vision_model(
        rows.reshape(count, 64, 192), mask, shapes
    ).last_hidden_state
    return found


def _map(model: Any, images: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.vision_encoder(images).last_hidden_state
    return found


def _joint(family: str, vision: Mapping[str, Any], text: Mapping[str, Any], **rest: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vision_config=dict(vision), text_config=dict(text), **rest
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config)


def _siglip2() -> Any:
    vision = {k: v for k, v in _VISION.items() if k != "image_size"}
    text = {k: v for k, v in _VISION.items() if k not in ("image_size", "patch_size")}
    config = transformers.Siglip2Config(
        vision_config={**vision, "num_patches": 64},
        text_config={**text, "vocab_size": 100, "projection_size": 32},
    )
    return transformers.Siglip2Model(config)


def _sam() -> Any:
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SamConfig(
        vision_config={
            **_VISION,
            "window_size": 4,
            "global_attn_indexes": [1],
            "output_channels": 16,
            "num_pos_feats": 8,
        },
        prompt_encoder_config=prompt,
        mask_decoder_config={**decoder, "iou_head_hidden_dim": 16},
    )
    return transformers.SamModel(config)


CHECKPOINTS: Mapping[str, tuple[Callable[[], Any], Answer]] = {
    "llava": (
        lambda: _joint(
            "Llava",
            {**_VISION, "model_type": "clip_vision_model", "projection_dim": 32},
            _TEXT,
            image_token_index=99,
        ),
        _projected,
    ),
    "paligemma": (
        lambda: _joint(
            "PaliGemma",
            _SIGLIP,
            {**_TEXT, "model_type": "gemma"},
            projection_dim=48,
            hidden_size=48,
            image_token_index=99,
        ),
        _projected,
    ),
    "gemma3": (
        lambda: _joint(
            "Gemma3",
            _SIGLIP,
            {**_TEXT, "model_type": "gemma3_text"},
            mm_tokens_per_image=16,
            image_token_index=99,
        ),
        _projected,
    ),
    "ayavision": (  # one that has no word
        lambda: _joint("AyaVision", _SIGLIP, _TEXT, image_token_index=99),
        _projected,
    ),
    "internvl": (
        lambda: _joint(
            "InternVL",
            {**_VISION, "image_size": (64, 64), "patch_size": (8, 8), "use_qk_norm": True},
            {**_TEXT, "model_type": "qwen2"},
            image_token_id=99,
        ),
        _projected,
    ),
    "idefics3": (lambda: _joint("Idefics3", _VISION, _TEXT, image_token_id=99), _of_one_image_each),
    "smolvlm": (
        lambda: _joint("SmolVLM", _VISION, _TEXT, scale_factor=4, image_token_id=99),
        _of_one_image_each,
    ),
    "blip2": (
        lambda: _joint(
            "Blip2",
            _VISION,
            _OPT,
            qformer_config={k: v for k, v in _VISION.items() if k[:3] in ("hid", "num", "int")},
            num_query_tokens=6,
            image_token_index=99,
        ),
        _queries,
    ),
    "siglip2": (_siglip2, _naflex),
    "sam": (_sam, _map),
}


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A tiny model of `CHECKPOINTS` with weights that tell, as transformers saves it."""
    torch.manual_seed(3)
    model = CHECKPOINTS[request.param][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize(
    ("saved", "answer"),
    [pytest.param(name, answer, id=name) for name, (_, answer) in CHECKPOINTS.items()],
    indirect=["saved"],
)
def test_checkpoint(saved: tuple[Any, Path], answer: Answer) -> None:
    """The image half of a whole model gives, to the bit, what the whole model gets of it."""
    model, folder = saved
    loaded = load_source(f"hf:{folder}")
    assert loaded.notes == ()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        result = loaded.module(images)
        expected = answer(model, images)
    ours = result[0] if isinstance(result, tuple) else result
    assert torch.equal(ours.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("saved", "part"),
    [("internvl", "internvl-vision"), ("smolvlm", "smolvlm-vision"), ("blip2", "blip2-vision")],
    indirect=["saved"],
)
def test_another_part_of_a_checkpoint(saved: tuple[Any, Path], part: str) -> None:
    model, folder = saved
    loaded = load_source(f"hf:{folder}?part={part}")
    inner = getattr(model, "model", model)
    tower = inner.vision_tower if hasattr(inner, "vision_tower") else inner.vision_model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        result = loaded.module(images)
        expected = tower(images).last_hidden_state
    assert torch.equal(result[0] if isinstance(result, tuple) else result, expected)
    with pytest.raises(ModelError, match=f"has no part 'dinov3', only .*{part}"):
        load_source(f"hf:{folder}?part=dinov3")


@pytest.mark.parametrize("saved", ["internvl"], indirect=True)
def test_checkpoint_without_the_weights_asked_for(saved: tuple[Any, Path]) -> None:
    """transformers gives the class random weights and logs it; that must not pass for a model."""
    _, folder = saved
    with pytest.raises(ModelError, match="no weights for InternVLVisionModel"):
        load_source(f"hf:{folder}?class=InternVLVisionModel")


@pytest.mark.parametrize("saved", ["llava", "siglip2"], indirect=True)
def test_checkpoint_at_another_size(saved: tuple[Any, Path], tmp_path: Path) -> None:
    """Trained positions are resized; the file holds them as a constant."""
    _, folder = saved
    loaded = load_source(f"hf:{folder}", image_size=48)
    path = tmp_path / "m.onnx"
    report = export(loaded, path, exporter="torchscript", batch="dynamic")
    assert next(iter(report.outputs.values()))[1] == 36
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "Resize"]


@pytest.mark.parametrize("saved", ["llava"], indirect=True)
def test_preprocessing_of_a_checkpoint(saved: tuple[Any, Path]) -> None:
    """The image half of a processor that prepares text too."""
    _, folder = saved
    image = {"image_mean": [0.1] * 3, "image_std": [0.4] * 3, "size": {"longest_edge": 64}}
    path = folder / "processor_config.json"
    path.write_text(json.dumps({"image_processor": image, "patch_size": 8}))
    found = load_source(f"hf:{folder}").preprocessing
    assert (found["mean"], found["std"], found["size"]) == ([0.1] * 3, [0.4] * 3, [64, 64])


@pytest.mark.parametrize("saved", ["llava"], indirect=True)
def test_architecture_of_a_checkpoint(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    loaded = load_source(
        f"hf:{folder}", random_weights=True, image_size=32, overrides={"depth": 2, "embed_dim": 64}
    )
    with torch.no_grad():
        assert loaded.module(*loaded.example_inputs.values()).shape == (1, 16, 48)


@pytest.mark.parametrize("family", ["Siglip", "CLIP"])
def test_classifier_on_a_tower(family: str, tmp_path: Path) -> None:
    """The checkpoint's own class, not the bare tower of its family."""
    text = {k: v for k, v in _VISION.items() if k not in ("image_size", "patch_size")}
    config = getattr(transformers, f"{family}Config")(
        vision_config=_VISION, text_config=text, num_labels=3
    )
    getattr(transformers, f"{family}ForImageClassification")(config).save_pretrained(tmp_path)
    loaded = load_source(f"hf:{tmp_path}")
    assert loaded.output_names == ("logits",)
    assert loaded.notes == ()
    assert loaded.preprocessing["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
