"""Known ways round exporter faults, each a context manager over the loaded model.

They are tried only when the plain export fails or its file is wrong; what was used is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from tcompile.models.attention import attention_as, get_attention
from tcompile.models.source import LoadedModel


@dataclass(frozen=True)
class Cure:
    """One workaround.

    Attributes:
        note: what it does, for the report.
        fits: whether it can change anything for this model; the second argument is the attention
            the caller insists on.
        apply: puts it in force for the time of a `with`.
    """

    note: str
    fits: Callable[[LoadedModel, str | None], bool]
    apply: Callable[[LoadedModel], AbstractContextManager[Any]]


@contextmanager
def _fixed_positions(loaded: LoadedModel) -> Iterator[None]:
    """Make `interpolate_pos_encoding` return what it returns at the example size.

    The image size is static, so the resized table is a constant; tracing its making gives bicubic
    antialiased Resize, which TorchScript cannot export and TensorRT cannot build.
    """
    owners = _interpolating(loaded)
    tables: dict[int, torch.Tensor] = {}

    def recorder(owner: torch.nn.Module, original: Callable[..., torch.Tensor]) -> Any:
        def record(*args: Any, **kwargs: Any) -> torch.Tensor:
            tables[id(owner)] = original(*args, **kwargs)
            return tables[id(owner)]

        return record

    def constant(owner: torch.nn.Module) -> Any:
        table = tables[id(owner)]
        return lambda *args, **kwargs: table

    try:
        for owner in owners:
            original: Any = owner.interpolate_pos_encoding
            owner.interpolate_pos_encoding = recorder(owner, original)
        with torch.no_grad():
            loaded.module(*loaded.example_inputs.values())
        for owner in owners:
            if id(owner) in tables:
                owner.interpolate_pos_encoding = constant(owner)
        yield
    finally:
        for owner in owners:
            owner.__dict__.pop("interpolate_pos_encoding", None)


def _interpolating(loaded: LoadedModel) -> list[torch.nn.Module]:
    modules = loaded.base.modules()
    return [m for m in modules if callable(getattr(type(m), "interpolate_pos_encoding", None))]


FIXED_POSITIONS = Cure(
    "the position table is taken as a constant at this image size",
    lambda loaded, _: bool(_interpolating(loaded)),
    _fixed_positions,
)
UNFUSED = Cure(
    "attention is written out, since this exporter does not take the fused form",
    lambda loaded, asked: asked is None and get_attention(loaded) == "sdpa",
    lambda loaded: attention_as(loaded, "eager"),
)


@contextmanager
def _real_rotary(loaded: LoadedModel) -> Iterator[None]:
    """Let Llama4's vision attention turn pairs with real arithmetic, in place of complex numbers.

    The table is handed over as cosines and sines [N, 1, d / 2, 2].
    """
    from transformers.models.llama4 import modeling_llama4 as library

    def turned(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        cos, sin = table[..., 0], table[..., 1]
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        both = (first * cos - second * sin, first * sin + second * cos)
        return torch.stack(both, dim=-1).flatten(3)

    def apply(query: torch.Tensor, key: torch.Tensor, freqs_ci: torch.Tensor) -> Any:
        return turned(query, freqs_ci), turned(key, freqs_ci)

    def handed(table: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda hidden_states: table

    owners: list[Any] = _complex_rotary(loaded)
    original = library.vision_apply_rotary_emb
    try:
        for owner in owners:
            owner.forward = handed(torch.view_as_real(owner.freqs_ci))
        library.vision_apply_rotary_emb = apply
        yield
    finally:
        library.vision_apply_rotary_emb = original
        for owner in owners:
            owner.__dict__.pop("forward", None)


def _complex_rotary(loaded: LoadedModel) -> list[torch.nn.Module]:
    return [m for m in loaded.base.modules() if type(m).__name__ == "Llama4VisionRotaryEmbedding"]


REAL_ROTARY = Cure(
    "the rotary embedding is written with real numbers, since ONNX has no complex ones",
    lambda loaded, _: bool(_complex_rotary(loaded)),
    _real_rotary,
)
CURES = (FIXED_POSITIONS, UNFUSED, REAL_ROTARY)


def plans(loaded: LoadedModel, attention: str | None) -> list[tuple[Cure, ...]]:
    """The combinations of cures worth trying, none first."""
    fitting = [cure for cure in CURES if cure.fits(loaded, attention)]
    found = [c for count in range(len(fitting) + 1) for c in combinations(fitting, count)]
    # A table resized at every call is a constant here: no need to try without.
    if loaded.resized and FIXED_POSITIONS in fitting:
        return [c for c in found if FIXED_POSITIONS in c]
    return found


@contextmanager
def applied(loaded: LoadedModel, cures: tuple[Cure, ...]) -> Iterator[None]:
    """Put all of `cures` in force."""
    with ExitStack() as stack:
        for cure in cures:
            stack.enter_context(cure.apply(loaded))
        yield
