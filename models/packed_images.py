"""Pixtral, Mllama and Llama4 vision towers: several images or tiles to a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tcompile.models.outputs import TensorOutputs, example_image
from tcompile.models.packed import Ready, integers


class ApartImages(torch.nn.Module):
    """Pixtral for images of one size: a batch, where the tower makes one sequence of them all.

    In the tower a mask keeps the images of that sequence apart. Of one size they can lie along
    the batch axis instead, which then is free, and need no mask. Values are the tower's own.

    Args:
        tower: transformers' PixtralVisionModel.
        size: height and width of the images in pixels.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, tower: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = tower
        rows, columns = (side // tower.patch_size for side in size)
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        cos, sin = tower.patch_positional_embedding(torch.zeros(1), positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to patch tokens [B, N, D]."""
        tower: Any = self.model
        tokens = tower.ln_pre(tower.patch_conv(pixel_values).flatten(2).transpose(1, 2))
        tables = (self.cos, self.sin)
        result = tower.transformer(tokens, attention_mask=None, position_embeddings=tables)
        hidden: torch.Tensor = result.last_hidden_state
        return hidden


class FixedAspect(torch.nn.Module):
    """Mllama with the shape of the image (how its tiles lie) as a constant.

    Args:
        tower: transformers' MllamaVisionModel.
        aspect: rows and columns of tiles.

    Raises:
        ValueError: not an arrangement that the model supports.
    """

    ids: torch.Tensor
    mask: torch.Tensor

    def __init__(self, tower: Any, aspect: tuple[int, ...]) -> None:
        super().__init__()
        self.model = tower
        known = [tuple(shape) for shape in tower.config.supported_aspect_ratios]
        if aspect not in known:
            listed = "; ".join(f"{rows},{columns}" for rows, columns in known)
            raise ValueError(f"tiles cannot lie as {aspect}; possible are {listed}")
        ids, mask = _aspect(tower, aspect)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 1, tiles, 3, H, W] to [B, 1, tiles, tokens, D x (1 + intermediate layers)]."""
        images = pixel_values.shape[0]
        tower: Any = self.model
        hidden: torch.Tensor = tower(
            pixel_values=pixel_values,
            aspect_ratio_ids=self.ids.expand(images, -1),
            aspect_ratio_mask=self.mask.expand(images, -1, -1),
        ).last_hidden_state
        return hidden


def pixtral(tower: Any, image_size: int | None, options: Mapping[str, Any]) -> Ready:
    """Images [B, 3, S, S] to [B, N, D]; with `packed` one sequence [1, B x N, D], as the tower."""
    size = image_size or _square(tower.config.image_size)
    if size < tower.patch_size:
        raise ValueError(f"an image of {size} pixels has no patch of {tower.patch_size}")
    packed = bool(options.get("packed", False))
    return Ready(
        TensorOutputs(tower, ("pixel_values",), {}) if packed else ApartImages(tower, (size, size)),
        {"pixel_values": example_image(size, size, tower.config.num_channels)},
        ("last_hidden_state",),
        {"size": [size, size]},
        () if packed else ("the images of a batch have one size and lie along the batch axis",),
        "the images of a batch are one sequence, whose length is fixed" if packed else "",
    )


def mllama(tower: Any, image_size: int | None, options: Mapping[str, Any]) -> Ready:
    """Tiles, the id of their arrangement and which of them are used; or, with `aspect`, tiles."""
    size = _own_size(tower, image_size)
    tiles, channels = tower.max_num_tiles, tower.num_channels
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(1, 1, tiles, channels, size, size, generator=generator)}
    preprocessing = {"size": [size, size], "layout": "tiles", "tiles": tiles}
    if "aspect" not in options:
        # Of all that fill the tiles, the squarest.
        shapes = list(tower.config.supported_aspect_ratios)
        ids, mask = _aspect(tower, max(shapes, key=lambda s: (s[0] * s[1], -max(s))))
        inputs |= {"aspect_ratio_ids": ids, "aspect_ratio_mask": mask}
        module: torch.nn.Module = TensorOutputs(tower, tuple(inputs), {})
        return Ready(module, inputs, ("last_hidden_state",), preprocessing)
    aspect = integers("aspect", options["aspect"], 2)
    note = f"images are {aspect[0]} x {aspect[1]} tiles: aspect_ratio_ids and _mask are constants"
    module = FixedAspect(tower, aspect)
    return Ready(module, inputs, ("last_hidden_state",), preprocessing, (note,))


def llama4(tower: Any, image_size: int | None, options: Mapping[str, Any]) -> Ready:
    """Tiles [B, 3, S, S] to [B, N / 4, D]: the pixel shuffle belongs to the tower."""
    size = _own_size(tower, image_size)
    return Ready(
        TensorOutputs(tower, ("pixel_values",), {}),
        {"pixel_values": example_image(size, size, tower.config.num_channels)},
        ("last_hidden_state",),
        {"size": [size, size]},
    )


def _aspect(tower: Any, aspect: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """aspect_ratio_ids [1, 1] and aspect_ratio_mask [1, 1, tiles] of an arrangement."""
    known = [tuple(shape) for shape in tower.config.supported_aspect_ratios]
    ids = torch.tensor([[known.index(tuple(aspect)) + 1]])  # 0 is no image
    used = torch.arange(tower.max_num_tiles) < aspect[0] * aspect[1]
    return ids, used.to(torch.int64)[None, None]


def _own_size(tower: Any, image_size: int | None) -> int:
    """The tower's size, which is the only one its trained positions fit."""
    own = _square(tower.config.image_size)
    if image_size not in (None, own):
        raise ValueError(f"the trained positions are for {own} pixels, not {image_size}")
    return own


def _square(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])
