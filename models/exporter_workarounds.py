"""Known ways round exporter faults, each a context manager over the loaded model.

None of them changes what is computed. What made a difference is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tcompile.models.attention import attention_as, get_attention
from tcompile.models.source import LoadedModel

#: What a workaround gives inside its `with`: a list of anything, empty if it made no difference.
Used = list[Any]


@dataclass(frozen=True)
class Workaround:
    """One workaround.

    Attributes:
        note: what it does, for the report.
        fits: whether it can change anything for this model; the other arguments are the attention
            the caller insists on and the exporter.
        apply: puts it in force for the time of a `with`.
        at_once: in force from the first attempt, not only when that failed.
    """

    note: str
    fits: Callable[[LoadedModel, str | None, str], bool]
    apply: Callable[[LoadedModel], AbstractContextManager[Used]]
    at_once: bool = True


def plans(
    loaded: LoadedModel, attention: str | None, exporter: str
) -> list[tuple[Workaround, ...]]:
    """Return the combinations of workarounds worth trying, in order."""
    fitting = [each for each in WORKAROUNDS if each.fits(loaded, attention, exporter)]
    first = tuple(each for each in fitting if each.at_once)
    return [first] if len(first) == len(fitting) else [first, tuple(fitting)]


@contextmanager
def applied(
    loaded: LoadedModel, workarounds: tuple[Workaround, ...]
) -> Iterator[Callable[[], list[str]]]:
    """Put all of them in force; give what tells, then and later, which made a difference."""
    with ExitStack() as stack:
        entered = [
            (workaround, stack.enter_context(workaround.apply(loaded)))
            for workaround in workarounds
        ]
        yield lambda: [each.note for each, used in entered if used]


# ---- constants -----------------------------------------------------------------------------------


@contextmanager
def _fixed(loaded: LoadedModel, method: str) -> Iterator[Used]:
    """Make a method of the model's parts return what it returns at the example size.

    The image size is static, so that is a constant; tracing how a table of positions is resized
    gives bicubic antialiased Resize, which TorchScript cannot export and TensorRT cannot build.
    """
    owners = _having(loaded, method)
    results: dict[torch.nn.Module, list[Any]] = {owner: [] for owner in owners}

    def recorder(owner: torch.nn.Module, original: Callable[..., Any]) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            results[owner].append(original(*args, **kwargs))
            return results[owner][-1]

        return record

    def constant(table: Any) -> Any:
        return lambda *args, **kwargs: table

    try:
        for owner in owners:
            setattr(owner, method, recorder(owner, getattr(owner, method)))
        with torch.no_grad():
            loaded.module(*loaded.example_inputs.values())
        tables = {owner: made[0] for owner, made in results.items() if len(made) == 1}
        for owner in owners:
            owner.__dict__.pop(method, None)
            if owner in tables:
                setattr(owner, method, constant(tables[owner]))
        yield list(tables)
    finally:
        for owner in owners:
            owner.__dict__.pop(method, None)


def _having(loaded: LoadedModel, method: str) -> list[torch.nn.Module]:
    return [m for m in loaded.base.modules() if callable(getattr(type(m), method, None))]


@contextmanager
def _fixed_resizing(loaded: LoadedModel) -> Iterator[Used]:
    """Make `interpolate` return constants where what it resizes does not come from the input.

    That is so where two inputs give the same. Calls are told apart by their order.
    """
    original: Callable[..., torch.Tensor] = functional.interpolate
    calls: list[tuple[torch.Size, torch.Tensor]] = []

    def record(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = original(input, *args, **kwargs)
        calls.append((input.shape, result))
        return result

    runs: list[list[tuple[torch.Size, torch.Tensor]]] = []
    replayed: Used = []
    turn = 0

    def replay(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal turn
        table = tables[turn % len(tables)]
        turn += 1
        if table is None or table[0] != input.shape:
            return original(input, *args, **kwargs)
        replayed.append(turn)
        kept: torch.Tensor = table[1]
        return kept

    patched: Any = functional
    try:
        patched.interpolate = record
        with torch.no_grad():
            for inputs in _two_inputs(loaded):
                loaded.module(*inputs)
                runs.append(calls.copy())
                if not calls:
                    break  # nothing is resized: no need of a second run
                calls.clear()
        tables = [
            mine if mine[0] == other[0] and torch.equal(mine[1], other[1]) else None
            for mine, other in zip(runs[0], runs[-1], strict=False)
        ]
        patched.interpolate = replay if any(tables) else original
        yield replayed
    finally:
        patched.interpolate = original


def _two_inputs(loaded: LoadedModel) -> list[list[torch.Tensor]]:
    examples = list(loaded.example_inputs.values())
    generator = torch.Generator().manual_seed(1)
    others = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in examples]
    return [examples, others]


# ---- operators -----------------------------------------------------------------------------------


@contextmanager
def _four_axes(loaded: LoadedModel) -> Iterator[Used]:
    """Give fused attention the arguments that the exporters take: four axes, a flag of Python's.

    A TorchScript trace turns the flag into a tensor, and has no heads that share keys.
    """
    original: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention
    used: Used = []

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: Any = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        if isinstance(is_causal, torch.Tensor):
            used.append("flag")
        is_causal = bool(is_causal)
        if kwargs.get("enable_gqa") and query.dim() == 4 and torch._C._is_tracing():
            used.append("heads")
            kwargs.pop("enable_gqa")
            shared = int(query.shape[1]) // int(key.shape[1])
            key, value = (
                t[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2) for t in (key, value)
            )
        if query.dim() == 4 or (query.dim() > 4 and attn_mask is not None):
            return original(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)
        used.append("axes")
        if query.dim() > 4:  # those between the batch and the tokens as one
            shape = (*query.shape[:-1], value.shape[-1])
            query, key, value = (t.flatten(1, -3) for t in (query, key, value))
            result = original(query, key, value, None, dropout_p, is_causal, **kwargs)
            return result.reshape(shape)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask[None]
        query, key, value = query[None], key[None], value[None]
        return original(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)[0]

    patched: Any = functional
    patched.scaled_dot_product_attention = attend
    try:
        yield used
    finally:
        patched.scaled_dot_product_attention = original


@contextmanager
def _plain_rms_norm(loaded: LoadedModel) -> Iterator[Used]:
    """Write RMS normalisation out."""
    original = torch.rms_norm
    used: Used = []

    def normed(
        input: torch.Tensor,
        normalized_shape: list[int],
        weight: torch.Tensor | None = None,
        eps: float | None = None,
    ) -> torch.Tensor:
        used.append(normalized_shape)
        axes = tuple(range(-len(normalized_shape), 0))
        small = torch.finfo(input.dtype).eps if eps is None else eps
        result = input * torch.rsqrt(input.pow(2).mean(axes, keepdim=True) + small)
        return result if weight is None else result * weight

    patched: Any = torch  # what functional.rms_norm calls, by whatever name it was imported
    patched.rms_norm = normed
    try:
        yield used
    finally:
        patched.rms_norm = original


@contextmanager
def _no_empty_parts(loaded: LoadedModel) -> Iterator[Used]:
    """Leave empty tensors out of concatenations, which a trace counts as one row."""
    original = torch.cat
    used: Used = []

    def join(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        parts = [part for part in tensors if 0 not in part.shape]
        if not parts or len(parts) == len(tensors):
            return original(tensors, *args, **kwargs)
        used.append(len(parts))
        return original(parts, *args, **kwargs)

    patched: Any = torch
    patched.cat = join
    try:
        yield used
    finally:
        patched.cat = original


@contextmanager
def _real_rotary(loaded: LoadedModel) -> Iterator[Used]:
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
        yield owners
    finally:
        library.vision_apply_rotary_emb = original
        for owner in owners:
            owner.__dict__.pop("forward", None)


def _complex_rotary(loaded: LoadedModel) -> list[torch.nn.Module]:
    return [m for m in loaded.base.modules() if type(m).__name__ == "Llama4VisionRotaryEmbedding"]


@contextmanager
def _unfused(loaded: LoadedModel) -> Iterator[Used]:
    with attention_as(loaded.base, "eager") as kind:
        yield [kind]


FIXED_POSITIONS = Workaround(
    "the position table is taken as a constant at this image size",
    lambda loaded, _, exporter: bool(_having(loaded, "interpolate_pos_encoding")),
    lambda loaded: _fixed(loaded, "interpolate_pos_encoding"),
)
FIXED_ROTARY = Workaround(
    "the rotary tables are taken as constants at this image size",
    lambda loaded, _, exporter: exporter == "torchscript" and bool(_having(loaded, "get_embed")),
    lambda loaded: _fixed(loaded, "get_embed"),
)
FIXED_RESIZING = Workaround(
    "a table that is resized is taken as a constant at this image size",
    # Of ids and masks no other values are known that the model would take.
    lambda loaded, _, exporter: all(
        tensor.is_floating_point() for tensor in loaded.example_inputs.values()
    ),
    _fixed_resizing,
)
FOUR_AXES = Workaround(
    "fused attention is given the form that the exporter takes",
    lambda loaded, _, exporter: True,
    _four_axes,
)
PLAIN_RMS_NORM = Workaround(
    "RMS normalisation is written out, since this exporter does not take the fused form",
    lambda loaded, _, exporter: exporter == "torchscript",
    _plain_rms_norm,
)
NO_EMPTY_PARTS = Workaround(
    "empty parts are left out of concatenations",
    lambda loaded, _, exporter: exporter == "torchscript",
    _no_empty_parts,
)
REAL_ROTARY = Workaround(
    "the rotary embedding is written with real numbers, since ONNX has no complex ones",
    lambda loaded, _, exporter: exporter == "torchscript" and bool(_complex_rotary(loaded)),
    _real_rotary,
)
UNFUSED = Workaround(
    "attention is written out, since this exporter does not take the fused form",
    lambda loaded, asked, exporter: asked is None and get_attention(loaded.base) == "sdpa",
    _unfused,
    at_once=False,
)
# In the order in which they are put in force: what one fixes the next does not see.
WORKAROUNDS = (
    FIXED_POSITIONS,
    FIXED_ROTARY,
    FIXED_RESIZING,
    FOUR_AXES,
    PLAIN_RMS_NORM,
    NO_EMPTY_PARTS,
    REAL_ROTARY,
    UNFUSED,
)
