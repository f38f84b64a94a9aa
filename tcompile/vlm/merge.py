"""Reduced vision tokens in a prompt: embeddings, mask and positions of the tokens that stay."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, make_dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from tcompile.core.errors import UsageError
from tcompile.core.packages import require
from tcompile.vlm.families import Family, as_tensor
from tcompile.vlm.vision import Given, Image, Places, images_of

if TYPE_CHECKING:
    from torch import Tensor

_WHAT = "the VLM hand-off"


@dataclass(frozen=True)
class Merged:
    """A prompt with reduced vision tokens: B rows of L tokens.

    Attributes:
        input_ids: [B, L]: the ids that stay; placeholders as many as vision tokens; 0 in padding.
        inputs_embeds: [B, L, D]: embeddings of text, features in place of placeholders.
        attention_mask: [B, L]: 1, and 0 in padding.
        position_ids: [B, L], or [3, B, L] where the model has mRoPE: those that the tokens have in
            the whole prompt.
        rope_deltas: [B, 1]: the position of the first generated token less the tokens before it.
        visual_pos_masks: [B, L], true for vision tokens.
        features: [K, D] of each image, in the order of the prompt.
        deepstack: [K, D] of each image, for each of the first layers of text; empty but in
            Qwen3-VL.
        token_type_ids: [B, L] where the prompt has them (PaliGemma), else None.
        modality: image or video.
    """

    input_ids: Tensor
    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rope_deltas: Tensor
    visual_pos_masks: Tensor
    features: tuple[Tensor, ...]
    deepstack: tuple[tuple[Tensor, ...], ...]
    token_type_ids: Tensor | None
    modality: str


def hand_off(
    model: Any,
    inputs: Mapping[str, Any],
    vision: Given,
    *,
    padding: Literal["left", "right"] = "left",
) -> dict[str, Any]:
    """What a vision-language model takes in place of the prompt: for its `forward` or `generate`.

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        given = vlm.hand_off(model, inputs, encoder(inputs["pixel_values"].numpy()))
        model.generate(**given, max_new_tokens=100)

    Tokens that stay keep the positions that they have in the whole prompt, text as well, so that
    the model computes what it would with the others hidden from its attention. Of a model with
    mRoPE, `rope_deltas` is set, as its own `forward` does.

    Args:
        model: transformers' model with its language model, LLaVA, InternVL, PaliGemma, SmolVLM,
            Qwen2-VL, Qwen2.5-VL or Qwen3-VL, of any device and dtype.
        inputs: what its processor gives: input_ids, attention_mask, image_grid_thw, …; pixels are
            not looked at.
        vision: what the encoder gave for the images of the prompt, in the order in which they are
            read: a result of `tcompile.load`'s model, a `Vision`, or several of these.
        padding: the side on which rows of a batch are filled up to one length; `generate` wants it
            on the left.

    Returns:
        `inputs_embeds`, `attention_mask`, `position_ids`. Qwen3-VL and PaliGemma have
        `input_ids` and `mm_encoder_outputs` in place of `inputs_embeds`: with embeddings the one
        takes no deepstack features, the other does not generate. PaliGemma: `token_type_ids`.

    Raises:
        UsageError: prompt, vision and model do not fit each other; says what does not.
    """
    prompt = _Prompt.of(model, inputs, vision)
    _check_use(model, prompt)
    merged = _merged(model, prompt, padding)
    if hasattr(prompt.family.base, "rope_deltas"):
        prompt.family.base.rope_deltas = merged.rope_deltas
    # `generate` reads the batch off the first of them.
    given: dict[str, Any] = {"inputs_embeds": merged.inputs_embeds}
    if _takes_features(model):
        encoded = _encoded(merged)
        given = {"input_ids": merged.input_ids, "mm_encoder_outputs": {merged.modality: encoded}}
    given |= {"attention_mask": merged.attention_mask, "position_ids": merged.position_ids}
    if merged.token_type_ids is not None:
        given["token_type_ids"] = merged.token_type_ids
    return given


def check(model: Any, inputs: Mapping[str, Any], vision: Given) -> None:
    """Raise UsageError, which says what is wrong, unless `hand_off` takes these."""
    _check_use(model, _Prompt.of(model, inputs, vision))


def merge(
    model: Any,
    inputs: Mapping[str, Any],
    vision: Given,
    *,
    padding: Literal["left", "right"] = "left",
) -> Merged:
    """The parts of `hand_off`, for programs that run the language model in another way; the model
    is left as it is."""
    return _merged(model, _Prompt.of(model, inputs, vision), padding)


@dataclass(frozen=True)
class _Prompt:
    """A prompt and the images in it, which were checked against each other.

    Attributes:
        ids: [B, L].
        mask: [B, L] bool, false in padding.
        seen: [B, L] bool, true where a placeholder of a vision token is.
        keep: [B, L] bool, true for the tokens that stay.
        positions: [B, L] or [3, B, L], of the whole prompt.
        types: token_type_ids or None.
        images: each with the number of placeholders that it has.
    """

    family: Family
    ids: Tensor
    mask: Tensor
    seen: Tensor
    keep: Tensor
    positions: Tensor
    types: Tensor | None
    images: tuple[tuple[Image, int], ...]
    modality: str

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Any], vision: Given) -> _Prompt:
        torch = require("torch", "export", _WHAT)
        family, images = Family.of(model), images_of(vision)
        given = {name: value for name, value in dict(inputs).items() if value is not None}
        if "input_ids" not in given:
            raise _unfit("there are no input_ids", hint="give what the processor returns")
        device = model.get_input_embeddings().weight.device
        ids = torch.as_tensor(given["input_ids"], device=device)
        mask = given.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask, device=device)
        modality, seen = _placeholders(model.config, ids)
        if (seen & (mask == 0)).any():
            raise _unfit("the attention mask hides image tokens")
        sizes = _sizes(family, images, int(seen.sum()), _grids(family, given, modality))
        _check_deepstack(model, images)
        keep = mask.bool() & ~seen
        places = seen.nonzero()
        start = 0
        for number, (image, size) in enumerate(zip(images, sizes, strict=True)):
            own = places[start : start + size]
            if (own[:, 0] != own[:1, 0]).any():
                raise _unfit(
                    f"the {size} tokens of image {number} do not lie in one row of the prompt"
                )
            kept = own[torch.from_numpy(_within(family, image, size, number)).to(device)]
            keep[kept[:, 0], kept[:, 1]] = True
            start += size
        ends = mask.bool() & (mask.flip(1).cumsum(1).flip(1) == 1)
        if not keep[ends].all():
            raise _unfit(
                "a row ends with an image, whose last token was removed: text would go on at the "
                "wrong place",
                hint="let text follow the image",
            )
        positions = _positions(torch, family.base, given, ids, mask)
        types = given.get("token_type_ids")
        return cls(
            family=family,
            ids=ids,
            mask=mask.bool(),
            seen=seen,
            keep=keep,
            positions=positions,
            types=None if types is None else torch.as_tensor(types, device=device),
            images=tuple(zip(images, sizes, strict=True)),
            modality=modality,
        )


def _merged(model: Any, prompt: _Prompt, padding: str) -> Merged:
    if padding not in ("left", "right"):
        raise UsageError(f"no padding '{padding}'", where="padding", hint="left or right")
    torch = require("torch", "export", _WHAT)
    keep, family = prompt.keep, prompt.family
    with torch.no_grad():
        # A placeholder's id may lie outside the vocabulary.
        embeds = model.get_input_embeddings()(prompt.ids.masked_fill(prompt.seen, 0))
        features = tuple(family.project(image, size).to(embeds) for image, size in prompt.images)
        embeds[prompt.seen & keep] = torch.cat(features)
    # What stays goes to one side, in its order; what is then cut off no row needs.
    length = int(keep.sum(1).max())
    if padding == "left":
        order = keep.int().argsort(dim=1, stable=True)[:, -length:]
    else:
        order = (~keep).int().argsort(dim=1, stable=True)[:, :length]
    mask = keep.gather(1, order)

    def moved(values: Tensor) -> Tensor:
        return values.gather(-1, order.expand(*values.shape[:-1], -1)) * mask

    last = prompt.positions.masked_fill(~prompt.mask, -1).movedim(-2, 0).flatten(1).amax(1)
    deep = zip(*(image.deepstack for image, _ in prompt.images), strict=True)
    return Merged(
        input_ids=moved(prompt.ids),
        inputs_embeds=embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[-1])),
        attention_mask=mask.long(),
        position_ids=moved(prompt.positions),
        rope_deltas=(last + 1 - keep.sum(1))[:, None],
        visual_pos_masks=moved(prompt.seen),
        features=features,
        deepstack=tuple(tuple(as_tensor(one).to(embeds) for one in layer) for layer in deep),
        token_type_ids=None if prompt.types is None else moved(prompt.types),
        modality=prompt.modality,
    )


def _placeholders(config: Any, ids: Tensor) -> tuple[str, Tensor]:
    """What the prompt holds, image or video, and where its tokens are."""
    found = {}
    for modality in ("image", "video"):
        token = getattr(config, f"{modality}_token_id", None)
        if token is not None and (ids == token).any():
            found[modality] = ids == token
    if len(found) != 1:
        both = "both images and videos" if found else f"no image token ({config.image_token_id})"
        raise _unfit(f"the prompt has {both}", hint="give what the processor returns")
    return next(iter(found.items()))


def _grids(family: Family, given: Mapping[str, Any], modality: str) -> list[int] | None:
    """The tokens of each image where the prompt says them; None: it does not."""
    if not hasattr(family.base, "get_rope_index"):
        return None
    name = f"{modality}_grid_thw"
    if name not in given:
        raise _unfit(f"there is no {name}", hint="give what the processor returns")
    square = int(family.base.config.vision_config.spatial_merge_size) ** 2
    return [int(grid.prod()) // square for grid in given[name]]


def _sizes(family: Family, images: list[Image], places: int, grids: list[int] | None) -> list[int]:
    """How many placeholders belong to each image."""
    told = [family.size(image) for image in images]
    if grids is not None:
        if len(grids) != len(images):
            raise _unfit(f"the prompt has {len(grids)} images, the encoder gave {len(images)}")
        sizes = list(grids)
    else:
        # Images whose size is not told have one size.
        rest = places - sum(size for size in told if size is not None)
        unknown = told.count(None)
        if unknown and (rest <= 0 or rest % unknown):
            raise _unfit(
                f"{rest} image tokens of the prompt cannot be divided among {unknown} images"
            )
        sizes = [rest // unknown if size is None else size for size in told]
    for number, (size, dense) in enumerate(zip(sizes, told, strict=True)):
        if dense is not None and dense != size:
            raise _unfit(
                f"the prompt has {size} tokens for image {number}, the dense encoder gives {dense}",
                hint=_SIZE,
            )
    if sum(sizes) != places:
        raise _unfit(
            f"the prompt has {places} image tokens, the dense encoder gives {sum(sizes)} for "
            f"{len(images)} images",
            hint=_SIZE,
        )
    return sizes


_SIZE = (
    "the processor's image size must be that of the export; where a CLS token comes first, give "
    "Vision.of(result, prefix=1)"
)


def _within(family: Family, image: Image, size: int, number: int) -> Places:
    places = family.places(image, size)
    if len(places) and places[-1] >= size:
        raise _unfit(
            f"image {number} has a token at place {places[-1]}, the prompt has {size} for it",
            hint=_SIZE,
        )
    return places


def _positions(
    torch: ModuleType, base: Any, given: Mapping[str, Any], ids: Tensor, mask: Tensor
) -> Tensor:
    """Positions of the whole prompt, [B, L] or [3, B, L]."""
    if "position_ids" in given:
        own_positions: Tensor = torch.as_tensor(given["position_ids"], device=ids.device)
        # The first row of four counts tokens, for masks of packed sequences.
        return own_positions[-3:] if own_positions.ndim == 3 else own_positions
    if not hasattr(base, "get_rope_index"):
        return (mask.long().cumsum(-1) - 1).clamp(min=0)
    takes = _names(base.get_rope_index)
    own = {
        name: value.to(ids.device) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
        if name in takes
    }
    own |= {"input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in takes and "mm_token_type_ids" not in own:
        config = base.config
        own["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (
            ids == config.video_token_id
        ).int()
    positions: Tensor = base.get_rope_index(**own)[0]
    return positions


def _check_use(model: Any, prompt: _Prompt) -> None:
    """Raise UsageError for a model, or a transformers, that would use what is given wrongly."""
    has = "transformers " + require("transformers", "export", _WHAT).__version__
    newer = "pip install -U transformers"
    if hasattr(model, "generate") and not hasattr(model, "_prepare_position_ids_for_generation"):
        raise UsageError(
            f"{has} does not count on from positions that are given to `generate`",
            where="model",
            hint=newer,
        )
    if _takes_features(model) and "mm_encoder_outputs" not in _names(model.forward):
        raise UsageError(
            f"{has} does not take features of images for this model", where="model", hint=newer
        )
    kind = ""
    with suppress(AttributeError):
        kind = str(model.config.get_text_config()._attn_implementation)
    gaps = prompt.positions.ndim == 2 and not prompt.keep[prompt.mask].all()
    if "flash" in kind and gaps:
        raise UsageError(
            f"{kind} takes gaps between positions for the ends of sequences",
            where="model",
            hint='load it with attn_implementation="sdpa"',
        )


def _check_deepstack(model: Any, images: list[Image]) -> None:
    layers = _deep_layers(model)
    for number, image in enumerate(images):
        if len(image.deepstack) != layers:
            raise _unfit(
                f"the model reads deepstack features of {layers} layers, image {number} has "
                f"{len(image.deepstack)}",
                hint="export the image half of this checkpoint: tcompile export hf:CHECKPOINT",
            )


def _deep_layers(model: Any) -> int:
    """How many of the first layers of text read features of their own."""
    return len(getattr(model.config.vision_config, "deepstack_visual_indexes", None) or ())


def _takes_features(model: Any) -> bool:
    """Whether a model cannot be given embeddings for everything that it does."""
    generates = hasattr(model, "generate")
    return bool(_deep_layers(model)) or (
        generates and "inputs_embeds" not in _names(model.prepare_inputs_for_generation)
    )


def _encoded(merged: Merged) -> Any:
    """The features as the model's own encoder gives them."""
    torch = require("torch", "export", _WHAT)
    if merged.deepstack:
        return _output_class()(merged.features, merged.deepstack)
    return _output_class()(torch.cat(merged.features))


@cache
def _output_class() -> Any:
    base = require("transformers.utils.generic", "export", _WHAT).ModelOutput
    fields = [("pooler_output", Any, None), ("deepstack_features", Any, None)]
    return make_dataclass("Encoded", fields, bases=(base,))


def _names(function: Any) -> Any:
    return inspect.signature(function).parameters


def _unfit(what: str, hint: str = "") -> UsageError:
    return UsageError(what, where="vision and prompt", hint=hint)
