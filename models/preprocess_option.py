"""How images are prepared for a model whose file does not say: what `--preprocess` takes.

Means and standard deviations of pixels in 0 to 1, in the order red, green, blue. Their sources:
`imagenet` and `inception` are timm's IMAGENET_DEFAULT_* and IMAGENET_INCEPTION_* with its
DEFAULT_CROP_PCT of 0.875 and the 0.9 of its ViTs (timm/data/constants.py,
timm/models/vision_transformer.py); `clip` is open_clip's OPENAI_DATASET_* (open_clip/constants.py),
which OpenAI's CLIP uses with a bicubic resize of the shorter side and a cut of the middle; `siglip`
is SigLIP's own processor in transformers: 0.5, the whole image squashed, bicubic; `dinov2` is
DINOv2's evaluation transform: ImageNet's mean, 256 and the middle 224, bicubic. `unit` and `raw`
are for models that scale pixels themselves: 0 to 1, and 0 to 255.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tcompile.core.errors import UsageError

if TYPE_CHECKING:
    from tcompile.core.model_files import TensorInfo

OPTION = "--preprocess"
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": "crop"}
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
_CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {**_IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"},
    "dinov2": {**_IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"},
    "inception": {**_HALF, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic"},
    "clip": {**_CLIP, "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic"},
    "siglip": {**_HALF, "resize": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
    "unit": {"mean": [0.0] * 3, "std": [1.0] * 3, "resize": "crop", "crop_pct": 1.0},
    "raw": {"mean": [0.0] * 3, "std": [1 / 255] * 3, "resize": "crop", "crop_pct": 1.0},
}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_KEYS = ("mean", "std", "size", "resize", "crop", "interpolation", "layout")
_FORM = (
    f"a name ({', '.join(PRESETS)}), or mean=R,G,B,std=R,G,B, or both; further size=H[,W], "
    "resize=crop, squash or pad, crop=SHARE, interpolation=bicubic, layout=nchw or nhwc"
)


def parse_preprocess(text: str) -> dict[str, Any]:
    """Read `clip`, `imagenet,size=384` or `mean=0.5,std=0.5,size=224`; nothing of a model is asked.

    Raises:
        UsageError: another form, or numbers that no image can be prepared with.
    """
    name, given = _split(text)
    if name is not None and name not in PRESETS:
        raise UsageError(f"there is no '{name}'", where=OPTION, hint=_FORM)
    found: dict[str, Any] = dict(PRESETS[name]) if name else {"resize": "crop", "crop_pct": 1.0}
    found.setdefault("interpolation", "bicubic")
    for key, values in given.items():
        found[{"crop": "crop_pct"}.get(key, key)] = _read(key, values)
    for key in ("mean", "std"):
        if key not in found:
            raise UsageError(f"{key} is missing", where=OPTION, hint=_FORM)
    return found


def resolved(text: str, inputs: Sequence[TensorInfo], known: Mapping[str, Any]) -> dict[str, Any]:
    """What `--preprocess` says of a model, as `tcompile export` records it in one.

    Args:
        inputs: of the model: one of them is an image.
        known: what the model records; its labels are kept.

    Raises:
        UsageError: the model takes no images, or others than the option says.
    """
    found = parse_preprocess(text)
    images = [t for t in inputs if _is_image(t)]
    image = next((t for t in images if t.name == known.get("input") or 3 in t.shape), None)
    image = image or next(iter(images), None)
    if image is None:
        raise UsageError(
            "the model has no input of images [B, 3, H, W] or [B, H, W, 3]",
            where=OPTION,
            hint="omit it, and give the inputs as .npy or .npz",
        )
    likely = image.shape[3] == 3 and image.shape[1] != 3
    last = {"nchw": False, "nhwc": True}.get(found.pop("layout", ""), likely)
    if image.shape[3 if last else 1] not in (3, "?") and isinstance(
        image.shape[3 if last else 1], int
    ):
        raise UsageError(
            f"input '{image.name}' is {list(image.shape)}, which does not have three channels "
            f"{'last' if last else 'first'}",
            where=OPTION,
            hint="say layout=nchw or layout=nhwc, or give the inputs as .npy or .npz",
        )
    sides = list(image.shape[1:3] if last else image.shape[2:])
    size = found.get("size", sides)
    if not all(isinstance(v, int) for v in size):
        size = known.get("size", size)
    if not all(isinstance(v, int) for v in size):
        raise UsageError(
            f"the size of input '{image.name}' is free in the model",
            where=OPTION,
            hint="add size=H,W to it",
        )
    if any(isinstance(v, int) and v != wanted for v, wanted in zip(sides, size, strict=True)):
        raise UsageError(
            f"size={','.join(map(str, size))} is not that of input '{image.name}', "
            f"{' × '.join(map(str, sides))}",
            where=OPTION,
            hint=f"omit size={','.join(map(str, size))}",
        )
    if image.dtype == "uint8" and found["std"] != PRESETS["raw"]["std"]:
        raise UsageError(
            f"input '{image.name}' holds pixels of 8 bits, which nothing is taken from",
            where=OPTION,
            hint="say raw, perhaps with size and resize",
        )
    labels = {"labels": known["labels"]} if "labels" in known else {}
    layout = {"channels": "last"} if last else {}
    return {"input": image.name, **found, "size": [int(v) for v in size], **layout, **labels}


def overrides(found: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A note where what was asked is not what the model records; empty where it does not differ."""
    names = [
        name
        for name in ("mean", "std", "size", "resize", "crop_pct", "interpolation")
        if name in known and json.dumps(known[name]) != json.dumps(found.get(name))
    ]
    if not names:
        return ""
    told = ", ".join(f"{n} {json.dumps(known[n])}" for n in names)
    return f"images are prepared as {OPTION} says; the model records {told}"


def _is_image(tensor: TensorInfo) -> bool:
    dims = tensor.shape
    kind = str(tensor.dtype)
    return len(dims) == 4 and (kind.startswith("float") or kind == "uint8")


def _split(text: str) -> tuple[str | None, dict[str, list[str]]]:
    """The name in front, and the values of each key."""
    name: str | None = None
    given: dict[str, list[str]] = {}
    last = ""
    for i, part in enumerate(p.strip() for p in text.split(",")):
        key, equals, value = part.partition("=")
        if equals and key in _KEYS and key not in given:
            last = key
            given[key] = [value]
        elif not equals and last and part:
            given[last].append(part)
        elif not equals and i == 0 and part:
            name = part
        else:
            raise UsageError(f"'{part}' in '{text}' is not understood", where=OPTION, hint=_FORM)
    return name, given


def _read(key: str, values: list[str]) -> Any:
    """The value of a key."""
    choices = {
        "resize": ("crop", "squash", "pad"),
        "layout": ("nchw", "nhwc"),
        "interpolation": _INTERPOLATIONS,
    }.get(key)
    if choices is not None:
        if len(values) != 1 or values[0] not in choices:
            raise UsageError(
                f"{key}={','.join(values)}", where=OPTION, hint=f"one of {', '.join(choices)}"
            )
        return values[0]
    counts = {"mean": (1, 3), "std": (1, 3), "size": (1, 2), "crop": (1,)}[key]
    try:
        numbers = [float(v) for v in values]
    except ValueError:
        numbers = []
    least, most = {"mean": (-1, 1), "std": (1e-6, 1), "size": (1, 1 << 14), "crop": (0.01, 1)}[key]
    sound = all(math.isfinite(n) and least <= n <= most for n in numbers)
    if len(numbers) not in counts or not sound or (key == "size" and any(n % 1 for n in numbers)):
        words = {
            "mean": "one number or three, of pixels in 0 to 1 (divide by 255 what is of 0 to 255)",
            "std": "one number or three, above 0, of pixels in 0 to 1 (divide by 255 what is of 0 "
            "to 255)",
            "size": "height and width in pixels, or one number for both",
            "crop": "a share, more than 0 and at most 1",
        }
        raise UsageError(f"{key}={','.join(values)}", where=OPTION, hint=f"it is {words[key]}")
    if key == "size":
        return [int(n) for n in numbers] * (2 if len(numbers) == 1 else 1)
    return numbers[0] if key == "crop" else numbers * (3 if len(numbers) == 1 else 1)
