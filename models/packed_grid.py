"""Qwen-VL vision towers at one grid: packed patches in, merged tokens out, a static graph.

The towers take the grid as an input and derive from it, in ways that no exporter can write down,
where segments and windows lie. For a known grid all of that is constant. transformers lets it be
given beforehand (`transformers.vision_utils`); here it is made once for each count of images.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tcompile.models.packed import Ready, integers

# The towers have no size of their own; processors make this of a small image.
_NATIVE = 448


class Bounds(tuple[int, ...]):
    """Segment bounds that stay Python integers where the towers take a tensor of them.

    The towers take differences of neighbours and split by them: `(b[1:] - b[:-1]).tolist()`.
    """

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Bounds(found) if isinstance(index, slice) else found

    def __sub__(self, other: tuple[int, ...]) -> Bounds:
        return Bounds(ours - theirs for ours, theirs in zip(self, other, strict=True))

    def tolist(self) -> list[int]:
        """The integers."""
        return list(self)


class RotaryTables(torch.nn.Module):
    """Hands over the (cos, sin) tables that stand in for position ids; real ids are computed."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, hidden_states: torch.Tensor, position_ids: Any) -> Any:
        """Tables, each [N, head dim]."""
        if isinstance(position_ids, tuple):
            return position_ids
        return self.original(hidden_states, position_ids)


class PositionTable(torch.nn.Module):
    """The learned positions resampled to a grid; one row a patch, in the tower's order.

    All images have the same grid, so the rows of one are repeated for each.

    `interpolate_pos_encoding` bears the name by which `exporter_workarounds` finds what an
    export may take as a constant.
    """

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, taps: Any) -> torch.Tensor:
        """Rows [images x N, 1, D] for (indices, weights, images), or those of plain indices."""
        if isinstance(taps, tuple):
            indices, weights, images = taps
            return self.interpolate_pos_encoding(indices, weights).repeat(images, 1)[:, None]
        rows: torch.Tensor = self.original(taps)
        return rows

    def interpolate_pos_encoding(
        self, indices: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sums of rows: indices and weights [N, taps] to [N, D]."""
        rows: torch.Tensor = (self.original(indices) * weights[:, :, None]).sum(1)
        return rows


class PackedTower(torch.nn.Module):
    """A tower with the grid as a constant.

    Args:
        tower: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL vision model of transformers. Its modules for
            positions are replaced by ones that take prepared tables as well.
        grid: patches (time, height, width) of one image or video.

    Raises:
        TypeError: this transformers' tower cannot be given prepared values.
    """

    def __init__(self, tower: Any, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = tower
        self.grid = grid
        self._prepared: dict[int, dict[str, Any]] = {}
        takes = inspect.signature(tower.rotary_pos_emb.forward).parameters
        if "position_ids" not in takes:  # before, ids were made deep inside the tower
            raise TypeError("this transformers is too old for the Qwen-VL towers; 5.23 is not")
        tower.rotary_pos_emb = RotaryTables(tower.rotary_pos_emb)
        if hasattr(tower, "pos_embed"):
            tower.pos_embed = PositionTable(tower.pos_embed)

    @property
    def patches(self) -> int:
        """Rows of the input that belong to one image or video."""
        time, height, width = self.grid
        return time * height * width

    def prepare(self, pixel_values: torch.Tensor) -> None:
        """Make what depends on the grid alone, for an input of this shape.

        Exporters run `forward` on tensors without values, where this cannot be done.

        Raises:
            ValueError: the rows are not those of whole images.
        """
        rows = int(pixel_values.shape[0])
        if rows % self.patches:
            raise ValueError(f"{rows} patches are not images of {self.patches}")
        count = rows // self.patches
        if count not in self._prepared:
            self._prepared[count] = self._constants(torch.tensor([self.grid] * count))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Merged tokens [patches / merge**2, D]; then DeepStack's features, where there are any.

        Args:
            pixel_values: [images x patches, channels x time x height x width of a patch], as the
                processor packs them.
        """
        self.prepare(pixel_values)
        constants = self._prepared[int(pixel_values.shape[0]) // self.patches]
        result = self.model(pixel_values, grid_thw=None, **constants)
        deep = tuple(getattr(result, "deepstack_features", None) or ())
        merged: torch.Tensor = result.pooler_output
        return (merged, *deep) if deep else merged

    @torch.no_grad()
    def _constants(self, grid: torch.Tensor) -> dict[str, Any]:
        """Return what the tower would derive from `grid` [images, 3], under transformers' names."""
        from transformers import vision_utils

        tower = self.model
        merge = tower.spatial_merge_size
        ids = vision_utils.get_vision_position_ids(grid, merge)
        cos, sin = tower.rotary_pos_emb(torch.zeros(1), ids)
        made: dict[str, Any] = {
            "position_ids": (cos, sin),
            "cu_seqlens": Bounds(vision_utils.get_vision_cu_seqlens(grid).tolist()),
        }
        if hasattr(tower, "window_size"):
            index, bounds = vision_utils.get_vision_window_index(
                grid, merge, tower.window_size, tower.patch_size
            )
            made["window_index"] = index
            made["cu_window_seqlens"] = Bounds(bounds.tolist())
        if hasattr(tower, "pos_embed"):
            taps = vision_utils.get_vision_interpolation_indices_and_weights(
                grid[:1],
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            made["interp_indices"] = (*taps, len(grid))
            made["interp_weights"] = torch.ones(1, 1)  # the rows are weighted already
        return made


def qwen(tower: Any, image_size: int | None, options: Mapping[str, Any]) -> Ready:
    """A tower at a square image of `image_size` pixels, or the options' `grid` or `frames`.

    Args:
        tower: see `PackedTower`.
        image_size: pixels; None for some 448.
        options: `grid`, patches (time, height, width) of an image or video; or `frames`, so many
            images that are a video.

    Raises:
        ValueError: the grid does not consist of the squares that are merged.
    """
    config = tower.config
    patch, merge, time = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    unit = patch * merge
    if "grid" in options:
        grid = integers("grid", options["grid"], 3)
    else:
        size = image_size or max(1, round(_NATIVE / unit)) * unit
        if size % unit:
            raise ValueError(
                f"an image of {size} pixels cannot be divided into {unit} x {unit} squares"
            )
        frames = int(options.get("frames", 1))
        grid = (max(1, -(-frames // time)), size // patch, size // patch)
    frames, height, width = grid
    if frames < 1 or height < 1 or width < 1 or height % merge or width % merge:
        raise ValueError(f"grid {grid} cannot be divided into squares of {merge} x {merge} patches")
    module = PackedTower(tower, (frames, height, width))
    generator = torch.Generator().manual_seed(0)
    channels = int(config.in_channels) * time * patch * patch
    still = "an image" if frames == 1 else f"a video of {frames * time} frames"
    deep = len(getattr(config, "deepstack_visual_indexes", ()))
    return Ready(
        module,
        {"pixel_values": torch.randn(module.patches, channels, generator=generator)},
        ("image_embeds", *(f"deepstack_{i}" for i in range(deep))),
        {
            "size": [height * patch, width * patch],
            "layout": "patches",
            "patch_size": patch,
            "merge_size": merge,
            "temporal_patch_size": time,
            "frames": frames * time,
        },
        (
            f"the grid is fixed: grid_thw = {list(grid)}, {still} of {height * patch} x"
            f" {width * patch} pixels",
        ),
        "the first axis of pixel_values holds the patches of a fixed grid",
    )
