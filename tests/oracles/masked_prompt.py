"""What a hand-off must equal: the whole prompt, in which attention does not see what was removed.

Every token keeps its place, also those that leave; a mask hides them. Nothing is gathered, and
positions are those that the model itself gives the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.tiny_vlm import IMAGE, Prompt

#: These take the features of all images as one tensor, the others one for each.
_ONE_TENSOR = ("internvl", "paligemma")


@dataclass(frozen=True)
class Image:
    """What the dense encoder gives for one image, and which tokens stay.

    Attributes:
        features: [N, D].
        deepstack: [N, D] each.
        kept: [K], in any order.
    """

    features: Tensor
    deepstack: tuple[Tensor, ...]
    kept: Tensor


def staying(prompt: Prompt, images: Sequence[Image]) -> list[list[int]]:
    """The places of each row of the prompt that stay, in their order."""
    left = [set(image.kept.tolist()) for image in images]
    number = place = 0
    rows = []
    for ids, mask in zip(prompt.inputs["input_ids"], prompt.inputs["attention_mask"], strict=True):
        row = []
        for i, (token, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            if token != IMAGE:
                row += [i] * real
                continue
            row += [i] * (place in left[number])
            place += 1
            if place == prompt.sizes[number]:
                number, place = number + 1, 0
        rows.append(row)
    return rows


def own_positions(model: Any, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """The positions that a model gives the whole prompt, [B, L] or [3, B, L], and its logits."""
    text = getattr(model.model, "language_model", None) or model.model.text_model
    seen: list[Tensor] = []
    hook = text.rotary_emb.register_forward_pre_hook(
        lambda _, args, keywords: seen.append(keywords.get("position_ids", args[-1])),
        with_kwargs=True,
    )
    logits: Tensor = model(**prompt.inputs).logits
    hook.remove()
    batch = prompt.inputs["input_ids"].shape[0]
    return seen[0].expand(*seen[0].shape[:-2], batch, -1), logits


@torch.no_grad()
def generated(
    model: Any, prompt: Prompt, images: Sequence[Image], count: int
) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, L, V] of the whole prompt; then those [B, V] of each of `count` tokens, the best
    of which is appended, all computed anew each time."""
    positions, _ = own_positions(model, prompt)
    ids = prompt.inputs["input_ids"]
    mask = torch.zeros_like(ids)
    for row, places in zip(mask, staying(prompt, images), strict=True):
        row[places] = 1
    types = prompt.inputs.get("token_type_ids")
    steps: list[Tensor] = []
    first = None
    for _ in range(count):
        call = {} if types is None else {"token_type_ids": types}
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            mm_encoder_outputs={"image": _encoded(model, images)},
            **call,
        ).logits
        first = logits if first is None else first
        steps.append(logits[:, -1])
        best = logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, best], -1)
        mask = torch.cat([mask, torch.ones_like(best)], -1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        if types is not None:
            types = torch.cat([types, torch.ones_like(best)], -1)
    assert first is not None
    return first, steps


def _encoded(model: Any, images: Sequence[Image]) -> Any:
    from transformers.utils.generic import ModelOutput

    features: Any = [image.features for image in images]
    if model.config.model_type in _ONE_TENSOR:
        features = torch.stack(features)
    deep = [list(layer) for layer in zip(*(i.deepstack for i in images), strict=True)]
    return ModelOutput(pooler_output=features, deepstack_features=deep)
