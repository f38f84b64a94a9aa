"""The twelve exports that `tools.compare_builds` gives to two versions of tcompile.

Run as a file by the interpreter that makes them: `python tools/comparison_models.py FOLDER`. Small
towers of four to six blocks with perturbed random weights, each of another structure or spelling.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Model:
    """A model and the way it is exported.

    Attributes:
        name: of the file.
        source: as `tcompile export` takes it.
        size: side of the square image in pixels; None for a source that has its own inputs.
        overrides: changes to the configuration of the library.
        exporter, attention, opset, batch: as `tcompile export` takes them.
        half: whether the weights and all that is computed are converted to float16 afterwards.
    """

    name: str
    source: str
    size: int | None
    exporter: str
    opset: int
    batch: int | str = 1
    attention: str | None = None
    half: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


_SIX = {"depth": 6, "embed_dim": 96, "num_heads": 3}
_FIVE = {"depth": 5, "embed_dim": 128, "num_heads": 4}
_FOUR = {"depth": 4, "embed_dim": 64, "num_heads": 2}
_CLASSES = {"num_classes": 10}
MODELS: tuple[Model, ...] = (
    Model(
        "vit-cls",
        "timm:vit_tiny_patch16_224",
        112,
        "dynamo",
        20,
        attention="sdpa",
        overrides={**_SIX, **_CLASSES},
    ),
    Model(
        "dinov2-registers",
        "timm:vit_small_patch14_reg4_dinov2",
        98,
        "torchscript",
        17,
        "dynamic",
        "eager",
        overrides=_FIVE,
    ),
    Model(
        "siglip-pool",
        "timm:vit_base_patch16_siglip_224",
        112,
        "dynamo",
        23,
        attention="sdpa",
        overrides={**_FIVE, **_CLASSES},
    ),
    Model(
        "deit-distilled",
        "hf:deit-distilled",
        112,
        "transformers",
        20,
        4,
        "sdpa",
        overrides={**_FIVE, **_CLASSES, "patch_size": 16},
    ),
    Model(
        "eva02-rotary",
        "timm:eva02_tiny_patch14_224",
        112,
        "torchscript",
        17,
        attention="sdpa",
        overrides={**_FOUR, **_CLASSES, "patch_size": 16},
    ),
    Model(
        "dinov3-rotary",
        "timm:vit_small_patch16_dinov3",
        112,
        "dynamo",
        18,
        "dynamic",
        "eager",
        overrides=_FOUR,
    ),
    Model(
        "clip-vision",
        "hf:clip-vision-projection",
        112,
        "transformers",
        18,
        "dynamic",
        "eager",
        overrides={**_SIX, "patch_size": 16, "projection_dim": 48},
    ),
    Model(
        "qwen25-merger",
        "hf:qwen2.5-vl",
        32,
        "torchscript",
        17,
        overrides={
            **_FOUR,
            "patch_size": 4,
            "output_dim": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1, 3],
        },
    ),
    Model(
        "sam-windows",
        "hf:sam-vision",
        64,
        "dynamo",
        20,
        attention="eager",
        overrides={
            **_FOUR,
            "patch_size": 8,
            "output_channels": 16,
            "window_size": 4,
            "global_attn_indexes": [1, 3],
        },
    ),
    Model(
        "beit-bias",
        "timm:beit_base_patch16_224",
        112,
        "torchscript",
        20,
        4,
        "sdpa",
        overrides={**_FOUR, **_CLASSES},
    ),
    Model(
        "average-half",
        "timm:vit_base_patch16_gap_224",
        112,
        "torchscript",
        17,
        "dynamic",
        "sdpa",
        half=True,
        overrides={**_SIX, **_CLASSES},
    ),
    Model("clip-towers", "comparison_models:two_towers", None, "torchscript", 17, "dynamic"),
)


def two_towers() -> tuple[nn.Module, dict[str, Any]]:
    """Return a CLIP with its image and text encoders, and an input of each."""
    import torch
    import transformers
    from torch import nn

    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        vision_config={**tower, "image_size": 96, "patch_size": 16},
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
        projection_dim=32,
    )

    class Towers(nn.Module):
        """CLIP, with its embeddings as a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.clip = transformers.CLIPModel(config)

        def forward(self, image: Any, text: Any) -> tuple[Any, Any]:
            found = self.clip(pixel_values=image, input_ids=text)
            return found.image_embeds, found.text_embeds

    text = torch.arange(8)[None] % 50
    return Towers(), {"image": torch.randn(1, 3, 96, 96), "text": text}


def write(model: Model, path: Path) -> None:
    """Export a model; the file appears when it is complete."""
    import onnx

    from tcompile.models import export, load_source

    loaded = load_source(
        model.source,
        random_weights=True,
        image_size=model.size,
        overrides=model.overrides,
        perturb=True,
    )
    made = path.with_name(f"{path.stem}.part.onnx")
    export(
        loaded,
        made,
        batch=model.batch,
        exporter=model.exporter,
        opset=model.opset,
        attention=model.attention,
    )
    if model.half:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(made), keep_io_types=True), made)
    made.replace(path)


def main() -> None:
    """Write the exports that are not yet in the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        path = folder / f"{model.name}.onnx"
        if not path.exists():
            print(f"exporting {model.name}", flush=True)
            write(model, path)


if __name__ == "__main__":
    main()
