"""The tokens that a reduced model chooses, seen from outside.

A model whose outputs have no token axis does not say which tokens it kept. Its token ops know: here
the first of them that chooses gets an output of its own. Later ones see what the first has left, so
that their indices only mean the same in two models while the first agree. Where token ops are
spelled in standard operators, the model's metadata says what the first one gave.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tcompile.core.decode import parse_json
from tcompile.core.drafts import scratch
from tcompile.core.load import read_structure
from tcompile.runtime.metrics import jaccard, same_owner

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Array = npt.NDArray[Any]
#: Which tokens an output of two models was compared over.
Compared = Literal["all", "restored tokens", "kept tokens"]
INDEX, OWNER, SIZE = "token_index", "token_owner", "token_size"
#: The entry of a model's metadata_props that says which index belongs to which output.
_RECORD = "tcompile.token_index"
#: The entry that says which tensors tell its first choice: `tcompile.chosen` → tensor, and so on.
_CHOICE = "tcompile.choice"
_CHOSEN, _SOURCE, _TARGET = "tcompile.chosen", "tcompile.source", "tcompile.target"
#: Choosing token op: what its outputs say.
_OUTPUTS = {
    "TcTopKTokens": (_CHOSEN,),
    "TcSelectTokens": (_CHOSEN,),
    "TcMatchTokens": ("", _SOURCE, _TARGET),
    "TcMatchAllTokens": (_TARGET,),
}


@contextmanager
def showing_choice(path: Path) -> Iterator[Path]:
    """The model, or where it does not tell its tokens a copy that does, inside the `with` block."""
    more = _telling(read_structure(path))
    if more is None:
        yield path
        return
    with scratch() as folder:
        # Parts of a protobuf message add up, so that no weights need to be read.
        for name in (path.name, f"{path.name}.data"):
            if path.with_name(name).exists():
                shutil.copyfile(path.with_name(name), folder / name)
        with (folder / path.name).open("ab") as stream:
            stream.write(onnx.ModelProto(graph=more).SerializeToString())
        yield folder / path.name


def is_bookkeeping(name: str) -> bool:
    """Return whether an output tells about tokens and holds none of the model's own results."""
    return name.startswith((INDEX, OWNER, SIZE, "tcompile."))


def recorded(token_index: Mapping[str, str]) -> dict[str, str]:
    """The entry of a model's metadata for `{output: its token_index}`; none where it is empty."""
    return {_RECORD: json.dumps(dict(token_index))} if token_index else {}


def recorded_choice(graph: gs.Graph) -> dict[str, str]:
    """The entry of a model's metadata for what its first token op that chooses gives; none where it
    chooses none.

    Args:
        graph: reduced, token ops as calls.
    """
    node = next((node for node in graph.nodes if node.op in _OUTPUTS), None)
    told = {} if node is None else _told(str(node.op), [t.name for t in node.outputs])
    return {_CHOICE: json.dumps(told)} if told else {}


def read_record(metadata: Mapping[str, str], key: str = _RECORD) -> dict[str, str]:
    """Output → the output that says which tokens its rows are, from a model's metadata."""
    try:
        found = parse_json(metadata.get(key, "{}"))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def tower_of_outputs(schedule: Mapping[str, Any]) -> dict[str, str]:
    """Output → the tower whose tokens it holds, where that is not the first one: from the JSON of a
    schedule."""
    towers = schedule.get("towers") or ()
    return {name: one["tower"] for one in towers for name in one.get("outputs", ())}


def for_output(
    kind: str,
    name: str,
    extra: Mapping[str, Array],
    length: int,
    towers: Mapping[str, str] | None = None,
) -> Array | None:
    """The index or owner map of an output: its own if it has one, else a shared one that fits.

    Args:
        towers: see `tower_of_outputs`; each of these has index and owner maps of its own.
    """
    labels = {f"{kind}_{tower}" for tower in (towers or {}).values()}
    if towers and name in towers:
        kind = f"{kind}_{towers[name]}"
        labels = set()
    own = [extra[key] for key in (f"{kind}_{name}", kind) if key in extra]
    shared = [
        array
        for key, array in extra.items()
        if key.startswith(f"{kind}_") and not any(key.startswith(label) for label in labels)
    ]
    return next((array for array in (*own, *shared) if array.shape[1] == length), None)


def token_overlap(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Array | None:
    """Return how far two runs agree on the tokens, for each sample in [0, 1]; None: not told.

    Sets of kept tokens by Jaccard, owner maps by the share of tokens grouped alike, pairs merged by
    Jaccard; where several tell, the lowest.
    """
    found = []
    for name, want in reference.items():
        if name not in actual or want.shape != actual[name].shape:
            continue
        if name.startswith((INDEX, _CHOSEN)):
            found.append(jaccard(want, actual[name]))
        elif name.startswith(OWNER):
            found.append(same_owner(want, actual[name]))
    if _TARGET in reference and _TARGET in actual:
        found.append(jaccard(_pairs(reference), _pairs(actual)))
    return np.minimum.reduce(found) if found else None


def _pairs(outputs: Mapping[str, Array]) -> Array:
    """One number for each pair (source, target), [B, r]."""
    target = outputs[_TARGET]
    source = outputs.get(_SOURCE, np.arange(target.shape[1]))
    return source * (1 << 20) + target


def _telling(model: onnx.ModelProto) -> onnx.GraphProto | None:
    """The nodes and outputs that let a model tell its tokens; None: it chooses none, or tells."""
    graph = model.graph
    told = read_record({p.key: p.value for p in model.metadata_props}, _CHOICE)
    if not told:  # of a model of an older version, or without metadata
        node = next((n for n in graph.node if n.op_type in _OUTPUTS), None)
        told = {} if node is None else _told(node.op_type, node.output)
    there = {name for node in graph.node for name in node.output}
    if not told or any(is_bookkeeping(o.name) for o in graph.output) or set(told.values()) - there:
        return None
    more = onnx.GraphProto()
    for name, tensor in told.items():
        more.node.append(helper.make_node("Identity", [tensor], [name], name=name))
        more.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None, None]))
    return more


def _told(op: str, outputs: Sequence[str]) -> dict[str, str]:
    """What a choice is told by → the tensor, of a token op's outputs."""
    names = zip(_OUTPUTS[op], outputs, strict=False)
    return {name: tensor for name, tensor in names if name and tensor}


def aligned(
    name: str,
    dense: Array,
    reduced: Array,
    extra: Mapping[str, Array],
    towers: Mapping[str, str] | None = None,
) -> tuple[Compared, Array, Array] | None:
    """An output of the dense and of a reduced model over the tokens that both have, and which
    tokens those are; None where they cannot be compared.

    Args:
        extra: outputs of the reduced model, with what tells of its tokens.
        towers: see `for_output`.
    """
    if dense.shape == reduced.shape:
        return "all", dense, reduced
    if dense.ndim != reduced.ndim:
        return None
    axes = [i for i, (n, k) in enumerate(zip(dense.shape, reduced.shape, strict=True)) if n != k]
    if len(axes) != 1 or axes[0] == 0:
        return None
    # [B, N, …] and [B, K, …], whatever lies where in the output itself.
    want, have = (np.moveaxis(a, axes[0], 1) for a in (dense, reduced))
    want, have = (a.reshape(*a.shape[:2], -1) for a in (want, have))
    owner = for_output(OWNER, name, extra, want.shape[1], towers)
    if owner is not None:
        return "restored tokens", *restored(want, have, owner)
    index = for_output(INDEX, name, extra, have.shape[1], towers)
    if index is None:
        return None
    # A fused token (index -1) is not one of the dense model's: it is left out on both sides.
    real = (index >= 0)[..., None]
    return "kept tokens", take_rows(want, index.clip(min=0)) * real, have * real


def restored(dense: Array, reduced: Array, owner: Array) -> tuple[Array, Array]:
    """Return both as [B, N, C], original tokens that nothing stands for zeroed in both.

    Args:
        dense: [B, N, C].
        reduced: [B, K, C].
        owner: [B, N], the row of `reduced` that stands for each token, or -1.
    """
    here = (owner >= 0)[..., None]
    rows = take_rows(reduced, owner.clip(min=0))
    return dense * here, rows * here


def take_rows(tokens: Array, index: Array) -> Array:
    """tokens [B, N, C] at index [B, K]: [B, K, C]."""
    return np.take_along_axis(tokens, index.astype(np.int64)[..., None], axis=1)
