"""SOURCE strings, and what each library's recipe makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tcompile.core.errors import MissingExtraError, ModelError, UsageError
from tcompile.models import SOURCES, load_source, parse_source

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2.0}
HERE = "tests.unit.models.tiny_sources"


def test_importing_is_light() -> None:
    code = (
        "import sys, tcompile.models, tcompile.models.source, tcompile.models.preprocess\n"
        "assert not {'torch', 'timm', 'transformers', 'onnx'} & set(sys.modules)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_forms() -> None:
    assert parse_source("timm:vit_tiny_patch16_224").library == "timm"
    assert parse_source("hf:owner/model").name == "owner/model"
    assert parse_source("hf:/some/folder").name == "/some/folder"
    mine = parse_source("pkg.mod:make.it")
    assert (mine.library, mine.name) == ("callable", "pkg.mod:make.it")
    options = parse_source("timm:x?global_pool=avg&depth=3&qk_norm=true").options
    assert options == {"global_pool": "avg", "depth": 3, "qk_norm": True}


@pytest.mark.parametrize("text", ["", "vit", "timm:", ":vit", "a b:c", "pkg.mod:call it", "1x:y"])
def test_unknown_form_lists_the_sources(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert caught.value.exit_code == 2
    assert all(form.split(",")[0] in str(caught.value) for form in SOURCES.values())


def test_option_without_value() -> None:
    with pytest.raises(UsageError, match="not an option"):
        parse_source("timm:x?depth")


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("timm:vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("hf:dinov4", "dinov3"),
        ("open_clip:ViT-B-17", "ViT-B-16"),
        ("torchvision:vit_b_17", "vit_b_16"),
        ("zoo:glyph", "glyphs"),
    ],
)
def test_unknown_name_offers_the_nearest(source: str, near: str) -> None:
    with pytest.raises(ModelError, match=near):
        load_source(source, random_weights=True)


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("torch", "timm:vit_tiny_patch16_224"),
        ("timm", "timm:vit_tiny_patch16_224"),
        ("transformers", "hf:vit"),
        ("open_clip", "open_clip:ViT-B-16"),
        ("torchvision", "torchvision:vit_b_16"),
    ],
)
def test_missing_library(library: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tcompile\[export\]'") as caught:
        load_source(source, random_weights=True)
    name = {"open_clip": "open_clip_torch"}.get(library, library)
    assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "timm:vit_base_patch16_224",
        "hf:vit",
        "hf:clip-vision-projection",
        "hf:siglip-vision",
        "hf:siglip-classify",
        "hf:dinov2",
        "hf:blip-vision",
        "open_clip:ViT-B-16",
        "torchvision:vit_b_16",
    ],
)
def test_one_spelling_for_every_library(source: str) -> None:
    """`depth`, `embed_dim`, `num_heads`, `mlp_ratio` mean the same everywhere; seed 0 repeats."""
    loaded = load_source(source, random_weights=True, image_size=64, overrides=SMALL)
    again = load_source(source, random_weights=True, image_size=64, overrides=SMALL)
    assert not loaded.module.training
    first, second = loaded.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(p.requires_grad for p in loaded.module.parameters())
    shapes = {tuple(p.shape) for p in loaded.module.parameters()}
    assert {(96, 48), (48, 96)} <= shapes, "MLP of width 48 and ratio 2"
    blocks = [m for m in loaded.module.modules() if _is_block(m)]
    assert len(blocks) == 2
    (image,) = loaded.example_inputs.values()
    assert image.shape == (1, 3, 64, 64)
    with torch.no_grad():
        result = loaded.module(image)
    tensors = result if isinstance(result, tuple) else (result,)
    assert len(tensors) == len(loaded.output_names)
    assert {"mean", "std", "size", "interpolation", "input"} <= set(loaded.preprocessing)


def _is_block(module: torch.nn.Module) -> bool:
    names = {name.lower() for name, _ in module.named_children()}
    attends = names & {"attn", "attention", "self_attn", "self_attention"}
    norms = [name for name in names if "norm" in name or "ln_" in name]
    return bool(attends) and len(norms) == 2  # a pooling head has one


def test_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_source("hf:vit", random_weights=True, image_size=32, overrides=SMALL, perturb=True)
    assert torch.equal(torch.rand(3), expected)


def test_perturb_moves_every_parameter() -> None:
    plain, moved = (
        load_source(
            "timm:deit3_small_patch16_224",
            random_weights=True,
            image_size=64,
            overrides={"depth": 2, "embed_dim": 48, "num_heads": 3},
            perturb=perturb,
        )
        for perturb in (False, True)
    )
    before = dict(plain.module.named_parameters())
    for name, parameter in moved.module.named_parameters():
        assert 0.01 < float((parameter - before[name]).std()) < 0.03, name


def test_attention_kinds() -> None:
    from tcompile.models.attention import attention_as, get_attention

    for source in ("timm:vit_tiny_patch16_224", "hf:vit"):
        loaded = load_source(
            source, random_weights=True, image_size=32, overrides=SMALL, attention="eager"
        )
        assert get_attention(loaded.base) == "eager"
        with attention_as(loaded.base, "sdpa") as kind:
            assert kind == get_attention(loaded.base) == "sdpa"
        assert get_attention(loaded.base) == "eager"
    with pytest.raises(UsageError, match="unknown attention 'flash'"):
        load_source("hf:vit", random_weights=True, overrides=SMALL, attention="flash")


def test_source_options_and_overrides() -> None:
    """Overrides win over the source's options."""
    loaded = load_source(
        "timm:vit_tiny_patch16_224?global_pool=avg&depth=5&num_classes=7",
        random_weights=True,
        image_size=32,
        overrides={"depth": 2},
    )
    module: Any = loaded.module
    assert (module.global_pool, len(module.blocks), module.num_classes) == ("avg", 2, 7)
    bare = load_source("timm:vit_tiny_patch16_224?depth=1&num_classes=0", random_weights=True)
    assert bare.output_names == ("features",)


@pytest.mark.parametrize(
    "source", ["timm:vit_tiny_patch16_224", "hf:vit", "open_clip:ViT-B-16", "torchvision:vit_b_16"]
)
def test_misspelt_override_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="dephts"):
        load_source(source, random_weights=True, overrides={"dephts": 2})


def test_nested_overrides() -> None:
    tiny = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 3}
    loaded = load_source(
        "hf:siglip-classify",
        random_weights=True,
        image_size=64,
        overrides={"vision_config": tiny, "vision_config.intermediate_size": 60},
    )
    config: Any = loaded.base.config
    assert config.vision_config.hidden_size == 48
    assert config.vision_config.intermediate_size == 60


def test_word_without_weights() -> None:
    with pytest.raises(ModelError, match="--random-weights"):
        load_source("hf:vit")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny ViT classifier saved as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "axolotl"},
    )
    torch.manual_seed(5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.4, 0.5, 0.6],
                "resample": 2,
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "size": {"shortest_edge": 40},
            }
        )
    )
    return tmp_path


def test_checkpoint_folder(checkpoint: Path) -> None:
    """The weights, the labels and the preprocessing of the checkpoint; its own class."""
    loaded = load_source(f"hf:{checkpoint}")
    assert loaded.output_names == ("logits",)
    assert loaded.preprocessing == {
        "input": "pixel_values",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "size": [32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "resize": "crop",
        "labels": ["cat", "dog", "axolotl"],
    }
    fresh = load_source(f"hf:{checkpoint}", random_weights=True)
    assert "labels" not in fresh.preprocessing
    name = "model.vit.embeddings.cls_token"
    assert fresh.output_names == ("logits",)
    assert not torch.equal(loaded.module.state_dict()[name], fresh.module.state_dict()[name])
    encoder = load_source(f"hf:{checkpoint}?class=ViTModel")
    assert encoder.output_names == ("last_hidden_state", "pooler_output")
    assert loaded.notes == ()
    assert "initialised at random: pooler.dense.bias, pooler.dense.weight" in encoder.notes[0]


def test_checkpoint_at_another_size(checkpoint: Path) -> None:
    """A trained position table is interpolated, not cut off or refused."""
    loaded = load_source(f"hf:{checkpoint}?class=ViTModel", image_size=48)
    with torch.no_grad():
        hidden, _ = loaded.module(*loaded.example_inputs.values())
    assert hidden.shape == (1, 37, 48)


def test_image_tower_of_a_two_tower_checkpoint(tmp_path: Path) -> None:
    """A whole CLIP in half precision: its image tower, in float32, with and without weights."""
    transformers = pytest.importorskip("transformers")
    tiny = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.CLIPConfig(
        text_config=tiny,
        vision_config={**tiny, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPModel(config).half().save_pretrained(tmp_path)
    for random_weights in (False, True):
        loaded = load_source(f"hf:{tmp_path}", random_weights=random_weights)
        assert loaded.output_names == ("image_embeds", "last_hidden_state")
        assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
        with torch.no_grad():
            embeds, _ = loaded.module(*loaded.example_inputs.values())
        assert embeds.dtype == torch.float32
    assert load_source(f"hf:{tmp_path}").notes == ()
    with pytest.raises(ModelError, match=r"other shapes: visual_projection\.weight"):
        load_source(f"hf:{tmp_path}?projection_dim=16")
    shallow = load_source(f"hf:{tmp_path}", random_weights=True, overrides={"depth": 2})
    assert shallow.base.config.num_hidden_layers == 2


def test_encoder_without_a_named_class(tmp_path: Path) -> None:
    """A bare encoder's checkpoint, with its own weights and with fresh ones."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=28
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    for random_weights in (False, True):
        loaded = load_source(f"hf:{tmp_path}", random_weights=random_weights)
        assert loaded.output_names == ("last_hidden_state", "pooler_output")


def test_model_without_images(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="image_size"):
        load_source(f"hf:{tmp_path}", random_weights=True, overrides={"depth": 1})


def test_random_heads_answer_something() -> None:
    """torchvision starts its head at zero."""
    loaded = load_source(
        "torchvision:vit_b_16", random_weights=True, image_size=32, overrides=SMALL
    )
    with torch.no_grad():
        assert float(loaded.module(*loaded.example_inputs.values()).abs().max()) > 0.01


def test_zoo_takes_no_options() -> None:
    with pytest.raises(ModelError, match="takes no image_size, depth"):
        load_source("zoo:glyphs?depth=2", image_size=112)


def test_zoo_glyphs() -> None:
    loaded = load_source("zoo:glyphs", random_weights=True)
    logits, patches = loaded.module(*loaded.example_inputs.values())
    assert len(loaded.preprocessing["labels"]) == logits.shape[1]
    assert patches.shape[:2] == (1, 196)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be built"):
        load_source(f"hf:{tmp_path}")


def test_callable() -> None:
    loaded = load_source(f"{HERE}:two_outputs?width=4")
    assert loaded.output_names == ("tokens", "pooled")
    (image,) = loaded.example_inputs.values()
    assert image.shape == (1, 3, 16, 16)
    assert loaded.preprocessing["size"] == [16, 16]
    tokens, pooled = loaded.module(image)
    assert tokens.shape == (1, 4, 4)
    assert pooled.shape == (1, 4)
    given = load_source(f"{HERE}:with_inputs")
    assert given.example_inputs["image"].shape == (1, 3, 24, 24)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_a_module", "returned int, not a torch module"),
        ("broken", "the weights are on another machine"),
        ("absent", "cannot import"),
        ("number", "is not callable"),
        ("two_outputs?wide=3", "wide"),
    ],
)
def test_callable_that_does_not_give_a_model(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_source(f"{HERE}:{name}")


def test_unknown_module_lists_the_sources() -> None:
    with pytest.raises(ModelError, match="possible sources: timm:NAME"):
        load_source("tim:vit_tiny_patch16_224")


def test_callable_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model_here.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Conv2d(3, 4, 8, stride=8)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    loaded = load_source("my_model_here:make", image_size=32)
    assert loaded.output_names == ("output",)
    assert sys.path == before
