"""Cases whose structure limits where tokens may leave: patches that are joined, windows. Data for
`zoo_matrix`, held against the oracles in tests/acceptance/test_structures.py."""

from __future__ import annotations

from typing import Any

from tests.support.matrix_case import TORCH, Case

_TOWER = {"depth": 3, "embed_dim": 32, "num_heads": 2}
_QWEN = {**_TOWER, "patch_size": 4, "output_dim": 24}
_GROUPED = {"evit": "group", "tome": "group"}
#: Windows everywhere but in two blocks.
_WINDOWS: dict[str, Any] = {
    "depth": 4,
    "embed_dim": 32,
    "num_heads": 2,
    "window_size": 4,
    "global_attn_indexes": [1, 3],
}


def _case(
    label: str, source: str, size: int, over: dict[str, Any], patches: int = 64, **more: Any
) -> Case:
    """8 x 8 patches, no prefix."""
    return Case(label, source, source, size, over, 0, patches, **more)


STRUCTURES: tuple[Case, ...] = (
    _case(
        "hf-qwen2-vl",
        "hf:qwen2-vl",
        32,
        _QWEN,
        refused=_GROUPED,
        notes="2-D RoPE; 2 x 2 patches are joined",
    ),
    _case(
        "hf-qwen3-vl",
        "hf:qwen3-vl",
        32,
        {**_QWEN, "depth": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]},
        refused=_GROUPED,
        notes="joined after several blocks",
    ),
    _case(
        "hf-qwen2.5-vl",
        "hf:qwen2.5-vl",
        32,
        {**_QWEN, "depth": 4, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        notes="windows of one size, in whose order the patches are",
    ),
    _case(
        "hf-qwen2.5-vl-ragged",
        "hf:qwen2.5-vl",
        32,
        {**_QWEN, "depth": 4, "window_size": 24, "fullatt_block_indexes": [1, 3]},
        notes="windows of several sizes",
    ),
    _case("hf-qwen2-vl-video", "hf:qwen2-vl?frames=4", 16, _QWEN, 32, notes="two segments"),
    _case(
        "hf-sam",
        "hf:sam-vision",
        64,
        {**_WINDOWS, "patch_size": 8, "output_channels": 16},
        notes="bias made of the query; convolutions behind",
    ),
    _case(
        "timm-sam",
        "timm:samvit_base_patch16?global_pool=",
        128,
        {**_WINDOWS, "neck_chans": 16},
        exporters=TORCH,
    ),
)
