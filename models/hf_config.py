"""transformers configurations: the overrides that go into one, what a checkpoint says of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tcompile.core.decode import read_json
from tcompile.models.source import LoadRequest

COMMON = {
    "depth": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_classes": "num_labels",
    "reg_tokens": "num_register_tokens",
}
# In a configuration of several towers these mean the image tower.
_OF_THE_TOWER = frozenset(
    ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
)
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_STATISTICS = {
    "deit": _IMAGENET,
    "dinov": _IMAGENET,
    "sam": _IMAGENET,
    "internvl": _IMAGENET,
    "clip": _CLIP,
    "llava": _CLIP,
    "blip": _CLIP,
}
_VIDEO = ("videomae", "vivit", "timesformer")
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@contextmanager
def quiet() -> Iterator[None]:
    """Loading logs the weights of the other half (text) as unexpected: no news here."""
    chatter = logging.getLogger("transformers")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatter.setLevel(level)


def tower_config(config: Any) -> Any:
    """The image tower's part of a configuration."""
    for name in ("vision_config", "backbone_config"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return config


def image_side(config: Any) -> tuple[int, int]:
    """Height and width in pixels that a tower's configuration is made for.

    Raises:
        AttributeError: it is not an image tower's.
    """
    vision = tower_config(config)
    if not hasattr(vision, "image_size") and hasattr(vision, "num_patches"):  # SigLIP2
        side = round(vision.num_patches**0.5) * vision.patch_size
        return side, side
    return pair(vision.image_size)


def frames(config: Any) -> int | None:
    """Return how many frames a clip has that a video model takes; None: it takes images."""
    count = getattr(config, "num_frames", None) if config.model_type in _VIDEO else None
    return None if count is None else int(count)


def pair(size: Any) -> tuple[int, int]:
    """A side, or height and width, as height and width."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def apply(config: Any, options: Mapping[str, Any], size: int | None) -> None:
    """Change a configuration in place. Only known fields: a misspelt one must not pass unseen.

    Args:
        config: a configuration of one tower or several.
        options: fields of it, under `COMMON`'s names or its own; dots lead into parts of it, and
            so does a mapping as the value.
        size: side of the image in pixels, or None to leave it.

    Raises:
        TypeError: no such field.
    """
    target = tower_config(config)
    # Swin has an `embed_dim` of its own.
    given = {k if hasattr(target, k) else COMMON.get(k, k): v for k, v in options.items()}
    if size is not None:
        given["image_size"] = size
    _follow_width(given, target)
    _follow_grid(given, config)
    if size is not None and not hasattr(target, "image_size") and hasattr(target, "num_patches"):
        side = given.pop("image_size") // int(given.get("patch_size", target.patch_size))
        given["num_patches"] = side * side
    width = given.get("projection_dim")
    if width and hasattr(config, "text_config") and not hasattr(config, "projection_dim"):
        given["text_config.hidden_size"] = given.pop("projection_dim")
    for key, value in given.items():
        holder = config
        *path, leaf = key.split(".")
        for part in path:
            holder = getattr(holder, part)
        is_joint = hasattr(config, leaf) and leaf not in _OF_THE_TOWER
        if not path and hasattr(target, leaf) and not is_joint:
            holder = target
        if not hasattr(holder, leaf):
            raise TypeError(f"{type(holder).__name__} has no field '{leaf}'")
        before = getattr(holder, leaf)
        if isinstance(value, Mapping):
            apply(before, value, None)
            continue
        if isinstance(value, float) and isinstance(before, int):
            value = int(value) if value.is_integer() else value  # fields are typed strictly
        if isinstance(value, int) and isinstance(before, (list, tuple)) and len(before) == 2:
            value = [value] * 2 if isinstance(before, list) else (value, value)
        if leaf != "out_indices":
            setattr(holder, leaf, value)
    _follow_depth(given, target)
    if hasattr(config, "qformer_config"):  # BLIP-2: what its Q-Former reads
        config.qformer_config.encoder_hidden_size = target.hidden_size
    if target is not config and hasattr(config, "projection_dim"):  # PaliGemma has it twice
        target.projection_dim = config.projection_dim


def _follow_depth(given: Mapping[str, Any], target: Any) -> None:
    """Let a backbone have a stage for each block, and give the maps asked for or the last."""
    if not hasattr(target, "stage_names") or not {"num_hidden_layers", "out_indices"} & set(given):
        return
    if "num_hidden_layers" in given:
        count = target.num_hidden_layers
        target.stage_names = ["stem", *(f"stage{i}" for i in range(1, count + 1))]
    target._out_features = None
    target.set_output_features_output_indices(
        out_features=None, out_indices=given.get("out_indices")
    )


def _follow_grid(given: dict[str, Any], config: Any) -> None:
    """Let Gemma 3 average as many patches into a token as before on another grid."""
    if "mm_tokens_per_image" in given or not hasattr(config, "mm_tokens_per_image"):
        return
    vision = config.vision_config
    pooled = round(config.mm_tokens_per_image**0.5)
    kernel = vision.image_size // vision.patch_size // pooled
    size, patch = given.get("image_size"), given.get("patch_size", vision.patch_size)
    size = given.get("vision_config.image_size", size) or vision.image_size
    patch = given.get("vision_config.patch_size", patch)
    given["mm_tokens_per_image"] = (int(size) // int(patch) // kernel) ** 2


def _follow_width(given: dict[str, Any], target: Any) -> None:
    """Let the fields that go with the width follow it, unless they are given themselves."""
    if "hidden_size" not in given and "mlp_ratio" not in given:
        return
    before = getattr(target, "hidden_size", None)
    if before is None:
        return
    width = int(given.get("hidden_size", before))
    ratio = given.get("mlp_ratio")
    for field in ("intermediate_size", "mlp_dim"):  # SAM calls it mlp_dim
        if field not in given and getattr(target, field, None) is not None:
            given[field] = int(width * (ratio or getattr(target, field) / before))
            if not hasattr(target, "mlp_ratio"):
                given.pop("mlp_ratio", None)
    if "pooler_output_size" not in given and hasattr(target, "pooler_output_size"):
        given["pooler_output_size"] = width


def preprocessing(request: LoadRequest, model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """From the checkpoint's own `preprocessor_config.json`, else what the family uses.

    Args:
        request: tells where the checkpoint is.
        model: its `config` tells the family and the labels.
        size: height and width of the input, pixels.
    """
    kind = str(model.config.model_type)
    mean, std = next((v for k, v in _STATISTICS.items() if kind.startswith(k)), _HALF)
    own = {} if request.random_weights else _processor(request.source.name)
    crop = _side(own.get("crop_size")) if own.get("do_center_crop") else None
    resize = _side(own.get("size"))
    by_edge = isinstance(own.get("size"), Mapping) and "shortest_edge" in own["size"]
    cropped = kind.startswith(("clip", "dinov2", "llava"))
    found: dict[str, Any] = {
        "input": "pixel_values",
        "mean": [float(v) for v in own.get("image_mean") or mean],
        "std": [float(v) for v in own.get("image_std") or std],
        "size": list(size),
        "interpolation": _RESAMPLE.get(own.get("resample", 3), "bicubic"),
        "crop_pct": min(1.0, crop / resize) if crop and resize else 1.0,
        "resize": "crop" if crop or by_edge or cropped else "squash",
    }
    labels = getattr(model.config, "id2label", None)
    if not request.random_weights and hasattr(model, "classifier") and labels:
        found["labels"] = [str(labels[i]) for i in range(len(labels)) if i in labels]
    return found


def _processor(name: str) -> dict[str, Any]:
    """A checkpoint's image processor; newer ones keep it inside `processor_config.json`."""
    for file, part in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        read = _read(name, file)
        found = read if part is None else read.get(part)
        if isinstance(found, dict) and found:
            return found
    return {}


def _read(name: str, file: str) -> dict[str, Any]:
    path: Path | None = Path(name) / file
    if not Path(name).is_dir():
        from transformers.utils import cached_file

        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        path = Path(found) if found else None
    if path is None or not path.is_file():
        return {}
    read = read_json(path, "a configuration")
    return read if isinstance(read, dict) else {}


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if size else None
