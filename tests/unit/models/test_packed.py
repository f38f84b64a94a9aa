"""Towers with inputs of their own kind: values as the library's, exports static, checkpoints cut.

The whole grid of words, exporters, attentions and batches runs with TCOMPILE_MATRIX=all.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tcompile.core.errors import ModelError, UsageError
from tcompile.models import export, load_source
from tcompile.models.preprocess import load_image

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}
QWEN: dict[str, Any] = {**TINY, "output_dim": 24, "patch_size": 4}
#: Word (with options) -> image size, overrides; Qwen2.5's windows are 2 x 2 squares of patches.
WORDS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "qwen2-vl": (32, QWEN),
    "qwen2-vl?frames=3": (16, QWEN),
    "qwen2.5-vl": (32, QWEN | {"window_size": 16}),
    "qwen2.5-vl?grid=2,4,6": (None, QWEN | {"window_size": 16}),
    "qwen3-vl": (32, QWEN | {"num_position_embeddings": 25}),
    "qwen3-vl?grid=2,4,6": (None, QWEN | {"num_position_embeddings": 25}),
    "qwen2.5-omni?grid=2,4,6": (None, QWEN | {"window_size": 16}),
    "qwen3-vl-moe": (32, QWEN | {"num_position_embeddings": 25}),
    "qwen3-omni": (16, QWEN | {"num_position_embeddings": 25}),
    "qwen3.5": (16, QWEN | {"num_position_embeddings": 25}),
    "qwen3.5-moe": (16, QWEN | {"num_position_embeddings": 25}),
    "glm-ocr": (16, QWEN),
    "exaone4.5": (32, QWEN | {"window_size": 16, "num_key_value_heads": 1}),
    "pixtral": (24, TINY | {"patch_size": 8}),
    "pixtral?packed=true": (24, TINY | {"patch_size": 8}),
    "mllama-vision": (24, TINY | {"patch_size": 8, "num_global_layers": 1}),
    "mllama-vision?aspect=1,2": (24, TINY | {"patch_size": 8, "num_global_layers": 1}),
    "llama4-vision": (32, TINY | {"patch_size": 8, "output_dim": 24}),
}


def _load(word: str, **more: Any) -> Any:
    size, overrides = WORDS[word]
    return load_source(
        f"hf:{word}", random_weights=True, image_size=size, overrides=overrides | more, perturb=True
    )


def _fresh(loaded: Any) -> Any:
    """The library's own module with the same weights, as it was before anything was changed."""
    tower = type(loaded.base)(loaded.base.config).eval()
    weights = {k.replace(".original.", "."): v for k, v in loaded.base.state_dict().items()}
    tower.load_state_dict(weights)
    return tower.requires_grad_(False)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    "word", [w for w in WORDS if "output_dim" in WORDS[w][1] and "llama" not in w]
)
def test_qwen_is_the_librarys_forward_with_grid_thw(word: str, images: int) -> None:
    loaded = _load(word)
    (example,) = loaded.example_inputs.values()
    grid = loaded.module.grid
    pixels = torch.randn(images * example.shape[0], example.shape[1])
    expected = _fresh(loaded)(pixels, grid_thw=torch.tensor([grid] * images))
    got = loaded.module(pixels)
    merged, *deep = got if isinstance(got, tuple) else (got,)
    assert merged.shape == (images * grid[0] * grid[1] * grid[2] // 4, 24)
    torch.testing.assert_close(merged, expected.pooler_output)
    assert len(deep) == (1 if "qwen3-" in word else 0)
    for ours, theirs in zip(deep, getattr(expected, "deepstack_features", ()), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frames_do_not_see_each_other() -> None:
    """A video of three frames is two pairs, and each is a segment of its own."""
    loaded = _load("qwen2-vl?frames=3")
    assert loaded.module.grid == (2, 4, 4)
    assert "a video of 4 frames of 16 x 16 pixels" in loaded.notes[0]
    pixels = torch.randn(32, 96)
    changed = pixels.clone()
    changed[16:] += 1
    before, after = loaded.module(pixels), loaded.module(changed)
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


def test_windows_are_what_the_configuration_says() -> None:
    """Qwen2.5: without a block of full attention, a patch is seen in its own window alone."""
    loaded = _load("qwen2.5-vl", fullatt_block_indexes=[])
    pixels = torch.randn(64, 96)
    changed = pixels.clone()
    changed[0] += 1  # in the first square of 2 x 2, whose window is 2 x 2 squares
    difference = (loaded.module(pixels) - loaded.module(changed)).abs().amax(1).reshape(4, 4)
    assert (difference > 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("word", ["pixtral", "pixtral?packed=true"])
def test_pixtral_is_the_librarys_forward(word: str) -> None:
    loaded = _load(word)
    pixels = torch.randn(2, 3, 24, 24)
    expected = _fresh(loaded)(pixels).last_hidden_state
    got = loaded.module(pixels)
    assert got.shape == ((1, 18, 32) if "packed" in word else (2, 9, 32))
    torch.testing.assert_close(got.reshape(1, 18, 32), expected)


def test_mllama_with_a_fixed_arrangement_of_tiles() -> None:
    fixed = _load("mllama-vision?aspect=1,2")
    free = _load("mllama-vision")
    tiles = torch.randn(2, 1, 4, 3, 24, 24)
    ids, mask = torch.tensor([[2], [2]]), torch.tensor([[[1, 1, 0, 0]]] * 2)
    assert fixed.base.config.supported_aspect_ratios[1] == [1, 2]
    torch.testing.assert_close(fixed.module(tiles), free.module(tiles, ids, mask))
    assert free.example_inputs["aspect_ratio_mask"].tolist() == [[[1, 1, 1, 1]]]


# ---- exports -------------------------------------------------------------------------------------

_ALL = [
    (word, exporter, opset, attention, batch)
    for word in WORDS
    for exporter, opset, attention, batch in [
        ("dynamo", 20, "sdpa", 1),
        ("dynamo", 18, "eager", 4),
        ("dynamo", 23, "sdpa", 1),
        ("torchscript", 17, "sdpa", 1),
        ("torchscript", 18, "eager", 4),
    ]
]
_FEW = [
    ("qwen2-vl", "dynamo", 20, "sdpa", 1),
    ("qwen2-vl?frames=3", "torchscript", 17, "sdpa", 2),
    ("qwen2.5-vl", "torchscript", 18, "eager", 1),
    ("qwen2.5-vl?grid=2,4,6", "dynamo", 18, "eager", 1),
    ("qwen3-vl", "dynamo", 23, "sdpa", 1),
    ("qwen3-vl?grid=2,4,6", "torchscript", 17, "eager", 2),
    ("exaone4.5", "torchscript", 17, "sdpa", 1),
    ("pixtral", "dynamo", 20, "sdpa", "dynamic"),
    ("pixtral?packed=true", "torchscript", 17, "sdpa", 2),
    ("mllama-vision", "torchscript", 17, "eager", "dynamic"),
    ("mllama-vision?aspect=1,2", "torchscript", 18, "sdpa", 1),
    ("llama4-vision", "dynamo", 23, "sdpa", "dynamic"),
    ("llama4-vision", "torchscript", 17, "eager", 1),
]


@pytest.mark.parametrize(
    ("word", "exporter", "opset", "attention", "batch"),
    _ALL if os.environ.get("TCOMPILE_MATRIX") == "all" else _FEW,
)
def test_export(
    word: str, exporter: str, opset: int, attention: str, batch: Any, tmp_path: Path
) -> None:
    """Static, of the asked form, and right (also for inputs that the export never saw)."""
    loaded, path = _load(word), tmp_path / "m.onnx"
    report = export(loaded, path, exporter=exporter, opset=opset, attention=attention, batch=batch)
    assert (report.exporter, report.opset, report.attention) == (exporter, opset, attention)
    assert report.notes[: len(loaded.notes)] == loaded.notes
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == list(loaded.example_inputs)
    ops = Counter(node.op_type for node in model.graph.node)
    assert not ops.keys() & {"If", "Loop", "Scan", "NonZero"}
    assert ("Attention" in ops) == (opset == 23)
    inputs = {
        name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor
        for name, tensor in loaded.example_inputs.items()
    }
    if batch != "dynamic":
        inputs = {n: t.repeat(int(batch), *[1] * (t.dim() - 1)) for n, t in inputs.items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        result = loaded.module(*inputs.values())
    expected = result if isinstance(result, tuple) else (result,)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5 * float(theirs.abs().max()))


def test_the_grid_is_no_batch(tmp_path: Path) -> None:
    """A free number of patches would be computed with the layout of another image."""
    for word in ("qwen2-vl", "pixtral?packed=true"):
        with pytest.raises(ModelError, match="cannot be exported with a free batch"):
            export(_load(word), tmp_path / "m.onnx", batch="dynamic")
    with pytest.raises(UsageError, match="takes unchanged transformers models only"):
        export(_load("qwen2-vl"), tmp_path / "m.onnx", exporter="transformers")
    with pytest.raises(ValueError, match="65 patches are not images of 64"):
        _load("qwen2-vl").module(torch.zeros(65, 96))


def test_positions_of_the_weights_at_the_time_of_export(tmp_path: Path) -> None:
    """The resampled table is a constant of the file, not of the loaded model."""
    loaded, path = _load("qwen3-vl"), tmp_path / "m.onnx"
    loaded.base.pos_embed.original.weight.mul_(2)
    report = export(loaded, path, exporter="torchscript")
    assert "the position table is taken as a constant" in report.notes[-1]
    assert not {n.op_type for n in onnx.load(path).graph.node} & {"Gather", "ReduceSum"}


# ---- configurations ------------------------------------------------------------------------------


def test_layer_lists_follow_the_depth() -> None:
    def fields(word: str, **more: Any) -> Any:
        return _load(word, **more).base.config

    assert fields("qwen2.5-vl", depth=4).fullatt_block_indexes == [3]
    assert fields("qwen2.5-vl", fullatt_block_indexes=[0]).fullatt_block_indexes == [0]
    assert fields("qwen3-vl", depth=9).deepstack_visual_indexes == [4]
    assert fields("mllama-vision", depth=7).intermediate_layers_indices == [3]
    assert fields("glm-ocr", depth=3).depth == 3
    assert fields("pixtral", num_heads=1).head_dim == 32
    assert fields("pixtral", mlp_ratio=3).intermediate_size == 96


@pytest.mark.parametrize(
    ("word", "size", "options", "message"),
    [
        ("qwen2-vl", 30, {}, "an image of 30 pixels cannot be divided into 8 x 8 squares"),
        ("qwen2-vl", None, {"grid": "1,3,4"}, "cannot be divided into squares of 2 x 2 patches"),
        ("qwen2-vl", None, {"grid": "4,4"}, "grid takes 3 whole numbers"),
        ("qwen2-vl", None, {"dept": 3}, "has no field 'dept'"),
        ("mllama-vision", 24, {"aspect": "5,5"}, "tiles cannot lie as"),
        ("pixtral", 4, {}, "an image of 4 pixels has no patch of 8"),
    ],
)
def test_what_cannot_be_built(
    word: str, size: int | None, options: dict[str, Any], message: str
) -> None:
    overrides = WORDS[word][1] | options
    with pytest.raises(ModelError, match=message):
        load_source(f"hf:{word}", random_weights=True, image_size=size, overrides=overrides)


# ---- checkpoints ---------------------------------------------------------------------------------

_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize("released", [False, True], ids=["saved", "released"])
def test_tower_of_a_checkpoint(released: bool, tmp_path: Path) -> None:
    """Saved by this transformers, or with the names of the released files (`visual.`)."""
    import transformers
    from safetensors.torch import load_file, save_file

    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 24, "num_heads": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=_TEXT)
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    named = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    assert any(name.startswith("visual.") for name in named)
    names = named if released else {f"model.{name}": tensor for name, tensor in named.items()}
    save_file(names, file, metadata={"format": "pt"})
    loaded = load_source(f"hf:{tmp_path}", image_size=16)
    assert len(loaded.notes) == 1, "every weight of the tower is there"
    pixels = torch.randn(16, 96)
    grid = torch.tensor([[1, 4, 4]])
    expected = model.model.visual(pixels, grid_thw=grid).pooler_output
    torch.testing.assert_close(loaded.module(pixels), expected)
    assert loaded.preprocessing["mean"][0] == pytest.approx(0.4814, abs=1e-4)


def test_tower_of_mllama_and_what_is_not_in_a_checkpoint(tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
    }
    text = _TEXT | {"cross_attention_layers": [], "pad_token_id": 0}
    made = transformers.MllamaConfig(vision_config=vision, text_config=text)
    model = transformers.MllamaForConditionalGeneration(made).eval()
    model.save_pretrained(tmp_path)
    loaded = load_source(f"hf:{tmp_path}?aspect=2,2")
    inputs = (torch.randn(1, 1, 4, 3, 24, 24), torch.tensor([[6]]), torch.ones(1, 1, 4))
    expected = model.model.vision_model(*inputs).last_hidden_state
    torch.testing.assert_close(loaded.module(inputs[0]), expected)
    with pytest.raises(ModelError, match="trained positions are for 24 pixels"):
        load_source(f"hf:{tmp_path}", image_size=48)

    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    partly = {n: t for n, t in weights.items() if "vision_model.class_embedding" not in n}
    save_file(partly, file, metadata={"format": "pt"})
    assert "class_embedding" in load_source(f"hf:{tmp_path}").notes[-1]
    none = {n: t for n, t in weights.items() if "vision_model" not in n}
    save_file(none, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="none of the tower's weights"):
        load_source(f"hf:{tmp_path}")


# ---- preprocessing -------------------------------------------------------------------------------


def test_patches_are_packed_as_the_processor_packs_them(tmp_path: Path) -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    loaded = _load("qwen2-vl")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    processor = Qwen2VLImageProcessor(patch_size=4, do_resize=False)
    expected = processor(Image.fromarray(pixels), return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [list(loaded.module.grid)]
    got = load_image(tmp_path / "image.png", loaded.preprocessing)
    np.testing.assert_allclose(got, expected["pixel_values"].numpy(), atol=1e-5)
    for word, what in (("qwen2-vl?frames=3", "a video"), ("mllama-vision", "tiles")):
        with pytest.raises(UsageError, match=f"takes {what}, not"):
            load_image(tmp_path / "image.png", _load(word).preprocessing)
