"""Writing the file: dims as asked for, metadata, one file where it fits, all or nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from tcompile.core.drafts import new_draft
from tcompile.core.errors import ModelError, UsageError
from tcompile.core.files import output_file, regular_file
from tcompile.models.positions import recorded_positions
from tcompile.models.preprocess import PREPROCESS_KEY, SOURCE_KEY
from tcompile.models.report import Dims
from tcompile.models.source import LoadedModel

# Protobuf's limit is 2 GiB; the graph itself and the framing need some of it.
_INLINE_LIMIT = 2_000_000_000
_DROPPED_METADATA = ("pkg.torch.export.ExportedProgram.graph_signature",)


def settle_inputs(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], batch: int | str
) -> None:
    """Make the file's input dims those that were asked for, or fail.

    transformers' exporter writes static dims as strings of digits; every exporter names the free
    batch its own way; some freeze it and say nothing.

    Raises:
        ModelError: an input is missing, or has other dims than were asked for.
    """
    inputs = {value.name: value for value in proto.graph.input}
    if set(inputs) != set(shapes):
        raise ModelError(f"has inputs {sorted(inputs)}, not {sorted(shapes)}")
    renamed: dict[str, str] = {}
    for name in shapes:
        found = _value_dims(inputs[name])
        first = found[0] if found else None
        if batch == "dynamic" and isinstance(first, str) and not first.isdigit():
            renamed[first] = "batch"
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.isdigit():
                dim.dim_value = int(dim.dim_param)
            elif dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]
    for name, shape in shapes.items():
        wanted: Dims = ("batch", *shape[1:]) if batch == "dynamic" else shape
        found = _value_dims(inputs[name])
        if found != wanted:
            raise ModelError(f"wrote input '{name}' as {list(found)}, not as {list(wanted)}")


def settle_outputs(proto: onnx.ModelProto, wanted: Sequence[Dims]) -> None:
    """Give the outputs the dims PyTorch has: TorchScript leaves static ones as made-up symbols.

    Raises:
        ModelError: another number of outputs, or a static dim that differs.
    """
    if len(proto.graph.output) != len(wanted):
        raise ModelError(f"has {len(proto.graph.output)} outputs where PyTorch has {len(wanted)}")
    for value, shape in zip(proto.graph.output, wanted, strict=True):
        found = _value_dims(value)
        if len(found) != len(shape) or any(
            isinstance(ours, int) and ours != theirs
            for ours, theirs in zip(found, shape, strict=True)
        ):
            raise ModelError(f"wrote output '{value.name}' as {list(found)}, not as {list(shape)}")
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(size, int):
                dim.dim_value = size
            else:
                dim.dim_param = size


def metadata(proto: onnx.ModelProto, loaded: LoadedModel) -> None:
    """Record where the model comes from, how to prepare an image for it, and how its code has
    positions for images of another size."""
    ours = {
        SOURCE_KEY: loaded.source,
        PREPROCESS_KEY: json.dumps(dict(loaded.preprocessing), ensure_ascii=False),
        **recorded_positions(loaded),
    }
    kept = [
        (entry.key, entry.value)
        for entry in proto.metadata_props
        if entry.key not in ours and entry.key not in _DROPPED_METADATA
    ]
    del proto.metadata_props[:]
    for key, value in (*kept, *ours.items()):
        proto.metadata_props.add(key=key, value=value)


@contextmanager
def staged(proto: onnx.ModelProto, target: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Write beside `target`, give the written file to be checked, then move it into place.

    Gives (the written file, the files that will exist in the end). If the body raises, nothing
    is left behind and what `target` was before stays.

    Raises:
        UsageError: it cannot be written there.
    """
    final = output_file(target)
    beside = final.with_name(f"{final.name}.data")
    is_large = _weight_bytes(proto) >= _INLINE_LIMIT
    if is_large and os.path.lexists(beside):
        regular_file(beside, hint="the weights are written there; give another name")
    with _writing(target):
        draft = new_draft(final, 0o700)
    written, data = draft.folder / final.name, draft.folder / beside.name
    try:
        with _writing(target):
            if is_large:
                onnx.save(proto, written, save_as_external_data=True, location=data.name)
                data.chmod(written.stat().st_mode)  # onnx makes it for its owner alone
            else:
                onnx.save(proto, written)
        shown = beside if target.is_symlink() else target.with_name(beside.name)
        yield written, (target, shown) if is_large else (target,)
        with _writing(target):
            if is_large:
                _move_both((written, final), (data, beside))
            else:
                written.replace(final)
    finally:
        draft.discard()


def _move_both(*pairs: tuple[Path, Path]) -> None:
    """Move files into place, all or none; the first of them is the last to be there.

    The graph of an earlier export never stands beside the weights of this one.
    """
    old = {place: made.with_name(f"{made.name}.old") for made, place in pairs}
    try:
        for place, kept in old.items():
            if os.path.lexists(place):
                place.rename(kept)
        for made, place in reversed(pairs):
            made.replace(place)
    except BaseException:
        for made, place in pairs:
            if not made.exists():
                place.unlink(missing_ok=True)
        for place, kept in reversed(old.items()):
            if os.path.lexists(kept):
                kept.replace(place)
        raise


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"cannot be written: {reason}", where=str(target)) from error


def _weight_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of weights; protobuf's own count would first serialise what may be too large to."""
    return sum(
        math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in proto.graph.initializer
    )


def dims(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Dims]:
    """Dims by name; a free one as its symbol."""
    return {value.name: _value_dims(value) for value in values}


def _value_dims(value: onnx.ValueInfoProto) -> Dims:
    shape = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in shape)
