"""The two ways libraries spell attention: fused (`sdpa`) or written out (`eager`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tcompile.core.errors import UsageError

if TYPE_CHECKING:
    import torch

KINDS = ("sdpa", "eager")


def get_attention(model: torch.nn.Module) -> str | None:
    """The spelling in force, or None where the model offers no choice (nn.MultiheadAttention)."""
    flags = [bool(m.fused_attn) for m in model.modules() if hasattr(m, "fused_attn")]
    if flags:
        return "sdpa" if all(flags) else "eager"
    config = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    return str(kind) if kind is not None else None


def set_attention(model: torch.nn.Module, kind: str) -> bool:
    """Spell every attention of the model as `kind`; False where the model offers no choice.

    timm attends through modules with a `fused_attn` flag; transformers through the model's
    `attn_implementation`. It is set on the module, because a configuration given to a
    model's parts may be reset when the parts are put together.

    Raises:
        UsageError: `kind` is neither "sdpa" nor "eager".
    """
    if kind not in KINDS:
        raise UsageError(f"unknown attention '{kind}'", hint=f"one of {', '.join(KINDS)}")
    found = False
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = kind == "sdpa"  # type: ignore[assignment]
            found = True
    setter = getattr(model, "set_attn_implementation", None)
    if callable(setter):
        setter(kind)
        found = True
    return found


@contextmanager
def attention_as(model: torch.nn.Module, kind: str | None) -> Iterator[str | None]:
    """`set_attention` for the time of a `with`; gives the spelling in force inside."""
    before = get_attention(model)
    if kind is None or kind == before:
        yield before
        return
    set_attention(model, kind)
    try:
        yield get_attention(model)
    finally:
        if before in KINDS:
            set_attention(model, before)
