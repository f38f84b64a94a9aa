"""The masked-dense oracle: the dense file, unreduced, made to ignore the tokens that were dropped.

Two ways. The counting oracle (present_walk.py) works the file out op by op and knows which elements
are there; it sees counts, permuted tokens and neighbours in the batch. Where it has no rule for an
op, ONNX Runtime runs the file with masks: every attention after a cut gets −1e9 added to the logits
of dropped keys, every mean over tokens counts the kept ones alone, and outputs with a token axis
are read at the kept rows. Sums that are no means are then beyond it.

That is what dropping tokens must compute, and it needs no PyTorch and nothing of the passes:
attentions and pools are found in the *source* file, from the shapes a run shows (dense_file.py).

Which tokens are kept is read from the reduced model; that they are the ones with the best scores is
checked against the probabilities of the dense file.

Around a block (bypass), its attention sees the kept keys and the other tokens have after it what
they had before.

Not for: merging and fusing, which no mask expresses; attention whose probabilities are mixed or
biased after the softmax (CaiT); windows. These raise `InapplicableError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.oracles.compare import EXTRA, MismatchError, infer
from tests.oracles.dense_file import POOLS, Array, Arrays, File, InapplicableError, Tokens, exposing
from tests.oracles.dense_parts import (
    Core,
    blind,
    find_cores,
    pooled_axes,
    token_softmaxes,
    unknown_attentions,
    unmasked_sums,
)
from tests.oracles.masked_choice import check_choice, probabilities, scores, seen_by
from tests.oracles.masked_graph import with_masks
from tests.oracles.merged import expected_merged, is_merged
from tests.oracles.present import Held, IllegalError
from tests.oracles.present_walk import Walk, batch_axis, outputs_of, taken, values_of

#: Both sides compute in float32, in another order: this many times the file's own noise is allowed.
FACTOR = 3.0
#: More tokens than this cost the counting oracle too much time where masks do as well.
SMALL = 48
#: The file's noise is taken for at least this fraction of the output's largest magnitude.
FLOOR = 1e-6


@dataclass(frozen=True)
class Cut:
    """Tokens leave after the attention of `block`; `keep` patches go on.

    Attributes:
        place: `attn`, `block`, `output` or `around`, as in the name of the site.
        block: number of the self-attention that the site follows.
        keep: patch tokens, not groups.
        score: `cls` or `attn`, or another name, which is not checked.
    """

    place: str
    block: int
    keep: int
    score: str

    @property
    def site(self) -> str:
        return self.place if self.place == "output" else f"{self.place}:{self.block}"


@dataclass(frozen=True)
class Verdict:
    """error and tolerance: the largest absolute difference of each output, and what is allowed."""

    error: tuple[float, ...]
    tolerance: tuple[float, ...]


# ---- the reduced model ---------------------------------------------------------------------------


def kept_patches(
    reduced: onnx.ModelProto, feed: Arrays, tokens: Tokens, *, apart: bool = False
) -> list[Array]:
    """The original patches that each cut keeps, [B, K] each, as the reduced model chooses.

    apart: each chooses from all patches.
    """
    names = [node.output[0] for node in reduced.graph.node if node.op_type == "TcTopKTokens"]
    values = infer(exposing(reduced, names), feed)
    members = tokens.members()
    groups: list[Array] = []
    for name in names:
        index = values[name]
        if groups and not apart:
            index = np.take_along_axis(groups[-1], index, axis=1)
        groups.append(index)
    return [members[index].reshape(len(index), -1) for index in groups]


def cuts_of(schedule: Mapping[str, Any]) -> list[Cut]:
    """A schedule's JSON as cuts. Raises InapplicableError where a reducer fuses or merges."""
    blocks = schedule["model"]["blocks"]
    found = []
    for step in schedule["reductions"]:
        if step["reducer"]["name"] not in ("topk", "bypass"):
            raise InapplicableError(f"{step['reducer']['name']} is no mask")
        place, _, number = step["site"].partition(":")
        if place not in ("attn", "block", "output", "around"):
            raise InapplicableError(f"site {step['site']}")
        found.append(Cut(place, int(number or blocks - 1), step["keep"], step["score"]["name"]))
    return found


def layout_of(schedule: Mapping[str, Any]) -> Tokens:
    """The token axis of a schedule's model: its fixed tokens come first."""
    return Tokens(schedule["model"]["prefix"], schedule["model"]["patches"])


# ---- the comparison ------------------------------------------------------------------------------


def check_masked(
    dense: onnx.ModelProto,
    reduced: onnx.ModelProto,
    schedule: Mapping[str, Any],
    feed: Arrays,
    outputs: str = "reduced",
    tokens: Tokens | None = None,
    spans: Mapping[int, tuple[str, str]] | None = None,
    places: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare a reduced model with the dense file made to ignore the dropped tokens.

    Args:
        dense: the file as it was given to the compiler.
        schedule: JSON of what the reduced model does.
        feed: the images, as many as a static batch takes.
        outputs: `restored` where every dense token has a row; those of dropped tokens must then be
            copies of kept rows.
        tokens: where the fixed tokens stand; before the patches by default.
        spans: block → the streams before and behind it, where one knows better than the oracle,
            which takes one sum after the attention for its end.
        places: site → the stream there, where one knows better than the oracle, which looks for
            sums behind the attention.

    Raises:
        MismatchError: saying where the two differ.
        InapplicableError: the oracle says nothing of this model.
    """
    tokens = tokens or layout_of(schedule)
    file = File(dense, feed)
    if is_merged(schedule) and outputs == "reduced":
        wanted = expected_merged(file, reduced, schedule, tokens, places or {})
        return _compare(file, infer(reduced, feed), wanted, _drift(file, tokens), None, tokens)
    cuts, blocks = cuts_of(schedule), schedule["model"]["blocks"]
    apart = all(cut.place == "around" for cut in cuts)
    cores = find_cores(file)
    known = _placed(file, cuts, spans or {}, places or {})
    try:
        of_blocks: Sequence[Core] = _of_blocks(cores, blocks, tokens)
    except InapplicableError:
        if not known:
            raise
        of_blocks = []  # attentions that the oracle does not know: which tokens stay is not checked
    if known and unknown_attentions(file, cores, tokens):
        of_blocks = []  # one of these may be a block's
    kept = kept_patches(reduced, feed, tokens, apart=apart)
    if [k.shape[1] for k in kept] != [cut.keep for cut in cuts]:
        raise MismatchError(f"keeps {[k.shape[1] for k in kept]} where {cuts} were asked for")
    read = [of_blocks[cut.block] for cut in cuts] if of_blocks else []
    found = infer(reduced, feed)
    if outputs == "restored":
        found = {n: _kept_rows(v, kept[-1], tokens, n) for n, v in found.items()}
    looked_at = [name for core in read for name in seen_by(file, core)]
    try:
        if tokens.total > SMALL and not blind(file, cores, tokens):
            raise InapplicableError("large")
        walk = _walk(file, cuts, read, kept, tokens, spans or {}, places or {})
        values, expected = values_of(walk, looked_at), outputs_of(walk, file)
        noise = _drift(file, tokens)
    except IllegalError as error:
        raise MismatchError(f"should have been refused: {error}") from error
    except InapplicableError as error:
        if not read or blind(file, cores, tokens) or "shape of it" in str(error):
            raise InapplicableError(f"masks do not count: {error}") from error
        if apart:
            model, masks = _bypassing(file, cuts, read, kept, tokens, spans or {})
        else:
            model, masks = _dropping(file, cores, read, cuts, kept, tokens)
        values, expected, noise = file.run(model, looked_at, **masks), None, _noise(file)
    batch = len(next(iter(feed.values())))
    entering = np.broadcast_to(tokens.members().reshape(-1), (batch, tokens.patches))
    before = entering
    for cut, core, after in zip(cuts, read, kept, strict=bool(read)):
        if cut.score in ("cls", "attn") and core.square:
            chances = probabilities(core, file, values, batch)
            score = scores(cut.score, chances, before, tokens)
            check_choice(score, before, after, f"block {cut.block}", tokens)
        before = entering if apart else after
    if expected is not None:
        masked = {
            n: _present_rows(h, found.get(n), n, batch, kept[-1], tokens)
            for n, h in expected.items()
        }
    else:
        masked = {
            n: _rows(values[n], found[n], kept[-1], tokens, n)
            for n in (o.name for o in file.model.graph.output)
            if n in found
        }
    held = {n: h for n, h in (expected or {}).items() if n in found}
    rows = {n: _places_of(h, found[n], batch) for n, h in held.items()}
    return _compare(file, found, masked, noise, kept[-1], tokens, rows)


def _placed(
    file: File, cuts: Sequence[Cut], spans: Mapping[int, tuple[str, str]], places: Mapping[str, str]
) -> bool:
    """Tell whether the streams that tokens leave are given, and in the file."""
    return all(
        all(name in file.maker for name in spans.get(cut.block, ("",)))
        if cut.place == "around"
        else places.get(cut.site, "") in file.maker
        for cut in cuts
    )


def _of_blocks(cores: Sequence[Core], blocks: int, tokens: Tokens) -> Sequence[Core]:
    """The attentions of the blocks: those among all tokens, or in windows, or whatever there is."""
    square = [c for c in cores if c.square]
    for found in ([c for c in square if c.shape[-1] == tokens.total], square, cores):
        if len(found) == blocks:
            return found
    raise InapplicableError(f"{len(cores)} attentions for {blocks} blocks")


Masked = tuple[onnx.ModelProto, Arrays]


def _bypassing(
    file: File,
    cuts: Sequence[Cut],
    read: Sequence[Core],
    kept: Sequence[Array],
    tokens: Tokens,
    spans: Mapping[int, tuple[str, str]],
) -> Masked:
    """Each block's attention sees the kept tokens, and the others pass it by."""
    around = {}
    for cut, core, few in zip(cuts, read, kept, strict=True):
        start, end = file.entering(core.node), file.stream(core.node, "block")
        given = spans.get(cut.block, ("", ""))
        if given[0] in file.maker and given[1] in file.maker:
            start, end = given
        if start is None:
            raise InapplicableError("an attention without a residual stream")
        around[end] = (start, few)
        mixing = {c.node for c in token_softmaxes(file, tokens)} - {core.node}
        mixing |= set(unmasked_sums(file, [core], tokens))
        if mixing & (file.readers_of(file.behind(start)) - file.readers_of(file.behind(end))):
            raise InapplicableError("tokens meet inside a block by more than its attention")
    hidden = {core.node: (core, few) for core, few in zip(read, kept, strict=True)}
    return with_masks(file, hidden, {}, tokens, around)


def _dropping(
    file: File,
    cores: Sequence[Core],
    read: Sequence[Core],
    cuts: Sequence[Cut],
    kept: Sequence[Array],
    tokens: Tokens,
) -> Masked:
    """Everything behind a cut sees the kept tokens alone."""
    below = [file.behind(file.stream(c.node, cut.place)) for cut, c in zip(cuts, read, strict=True)]

    def stage(node: int) -> int:
        return sum(any(n in under for n in file.nodes[node].input) for under in below)

    if any(stage(i) for i in unmasked_sums(file, cores, tokens)):
        raise InapplicableError("tokens are summed with weights that are no softmax")
    softmaxes = {c.node: c for c in (*token_softmaxes(file, tokens), *cores)}
    hidden = {i: (c, kept[stage(i) - 1]) for i, c in softmaxes.items() if stage(i)}
    pools = {
        i: kept[stage(i) - 1]
        for i, node in enumerate(file.nodes)
        if node.op_type in POOLS
        and node.input[0] in file.values
        and stage(i)
        and pooled_axes(file, node, tokens) is not None
    }
    return with_masks(file, hidden, pools, tokens)


def _walk(
    file: File,
    cuts: Sequence[Cut],
    read: Sequence[Core],
    kept: Sequence[Array],
    tokens: Tokens,
    spans: Mapping[int, tuple[str, str]],
    places: Mapping[str, str],
) -> Walk:
    """The file worked out with the tokens gone."""
    if all(cut.place == "around" for cut in cuts):
        around = {}
        cores: Sequence[Core | None] = read or [None] * len(cuts)
        for cut, core, few in zip(cuts, cores, kept, strict=True):
            start, end = spans.get(cut.block, ("", ""))
            if core is not None and (start not in file.maker or end not in file.maker):
                start, end = file.entering(core.node) or "", file.stream(core.node, "block")
            if not start:
                raise InapplicableError("an attention without a residual stream")
            around[end] = (start, few)
        return Walk(file, tokens, {}, around)
    names = [places.get(cut.site, "") for cut in cuts]
    streams = [
        file.origin(name) if name in file.maker else file.stream(read[i].node, cut.place)
        for i, (name, cut) in enumerate(zip(names, cuts, strict=True))
    ]
    return Walk(file, tokens, dict(zip(streams, kept, strict=True)))


def _drift(file: File, tokens: Tokens) -> dict[str, float]:
    """Return how far ONNX Runtime is from the dense file in float64, output by output."""
    dense, noise = Walk(file, tokens, {}), _noise(file)
    for name in noise:
        value, given = dense.held[name].value, file.values[name]
        far = float(np.abs(value - given.astype(np.float64)).max(initial=0))
        if not far <= 1e-2 * float(np.abs(value).max(initial=0)) + 1e-30:
            raise InapplicableError(f"'{name}' is {far:.2e} off in the reference")
        noise[name] = max(noise[name], far)
    return noise


def _present_rows(
    held: Held,
    reduced: Array | None,
    name: str,
    batch: int,
    kept: Array | None = None,
    tokens: Tokens | None = None,
) -> Array:
    """Return what is left of a dense output, in the shape of the reduced one.

    Args:
        kept: the patches that are left in the end, which outputs of every depth have.
    """
    value, there = held.value, held.full
    if reduced is None or value.ndim != reduced.ndim:
        raise MismatchError(f"{name}: shape {reduced is not None and reduced.shape}")
    if there.all() and value.shape != reduced.shape and kept is not None and tokens is not None:
        return _rows(value, reduced, kept, tokens, name)
    for axis, (a, b) in enumerate(zip(value.shape, reduced.shape, strict=True)):
        if a == b:
            continue
        lead = batch_axis(value.shape, axis, batch)
        picked = _left_along(there, axis, lead)
        if any(len(p) != b for p in picked):
            counts = [len(p) for p in picked]
            raise MismatchError(f"{name}: {reduced.shape}, where {counts} of {a} are left")
        value, there = (taken(x, np.stack(picked), axis, lead) for x in (value, there))
    if not there.all():
        raise MismatchError(f"{name}: {reduced.shape}, of which some is made of tokens that left")
    return value


def _left_along(there: Array, axis: int, lead: int | None) -> list[Array]:
    """The places along an axis where something is, for each image."""
    rows = there.any(tuple(i for i in range(there.ndim) if i not in (axis, lead)))
    rows = rows[None] if lead is None else rows if lead < axis else rows.T
    return [np.flatnonzero(row) for row in rows]


def _places_of(held: Held, reduced: Array, batch: int) -> Array | None:
    """[B, n] the dense rows of an output that are left, along the first axis that got shorter."""
    if held.there is None:
        return None
    for axis, (a, b) in enumerate(zip(held.value.shape, reduced.shape, strict=True)):
        if a != b:
            lead = batch_axis(held.value.shape, axis, batch)
            return np.stack(_left_along(held.full, axis, lead))
    return None


def _compare(
    file: File,
    found: Arrays,
    masked: Arrays,
    noise: Mapping[str, float],
    kept: Array | None,
    tokens: Tokens,
    rows: Mapping[str, Array | None] | None = None,
) -> Verdict:
    names = [o.name for o in file.model.graph.output]
    errors, tolerances = [], []
    for name in names:
        if name not in found:
            raise MismatchError(f"output '{name}' is gone")
        expected = masked[name]
        if expected.shape != found[name].shape:
            raise MismatchError(f"{name}: shape {found[name].shape} for {expected.shape}")
        if not np.isfinite(expected).all():
            raise InapplicableError(f"the dense '{name}' is not finite")
        error = float(np.abs(found[name].astype(np.float64) - expected).max(initial=0))
        scale = float(np.abs(expected).max(initial=0))
        errors.append(error)
        tolerances.append(FACTOR * max(noise[name], FLOOR * scale))
        if not error <= tolerances[-1]:  # so that NaN is a mismatch
            raise MismatchError(f"{name}: error {error:.2e}, allowed {tolerances[-1]:.2e}")
    if "token_index" in found and kept is not None:
        _check_index(found, file.values, names, kept, tokens, rows or {})
    unknown = [n for n in found if n not in names and not n.startswith(EXTRA)]
    if unknown:
        raise MismatchError(f"outputs {unknown} are in no plan")
    return Verdict(tuple(errors), tuple(tolerances))


def _kept_rows(restored: Array, kept: Array, tokens: Tokens, name: str) -> Array:
    """The kept rows of a restored output [B, N, C]; raises where another row is no copy of one."""
    if restored.ndim != 3 or restored.shape[1] not in (tokens.total, tokens.patches):
        return restored
    rows = _positions(restored.shape[1], kept, tokens)
    assert rows is not None
    found = np.take_along_axis(restored, rows[..., None], axis=1)
    for image, few in zip(restored, found, strict=True):
        if not {row.tobytes() for row in image} <= {row.tobytes() for row in few}:
            raise MismatchError(f"{name}: a dropped token's row is no kept token's")
    return found


def _rows(dense: Array, reduced: Array, kept: Array, tokens: Tokens, name: str) -> Array:
    """The dense output at the kept tokens, along the axes that got shorter."""
    if dense.ndim != reduced.ndim:
        raise MismatchError(f"{name}: shape {reduced.shape} for a dense {dense.shape}")
    axes = [i for i, (a, b) in enumerate(zip(dense.shape, reduced.shape, strict=True)) if a != b]
    for axis in axes:
        rows = _positions(dense.shape[axis], kept, tokens)
        if rows is None or rows.shape[1] != reduced.shape[axis]:
            raise MismatchError(f"{name}: axis {axis} went from {dense.shape} to {reduced.shape}")
        batch = next((i for i in range(dense.ndim) if i not in axes), None)
        if batch is not None and dense.shape[batch] == len(rows):
            parts = zip(np.moveaxis(dense, batch, 0), rows, strict=True)
            taken = [np.take(part, row, axis=axis - (axis > batch)) for part, row in parts]
            dense = np.stack(taken, axis=batch)
        elif len(rows) == 1:
            dense = np.take(dense, rows[0], axis=axis)
        else:
            raise InapplicableError(f"{name}: of {dense.shape}, which axis is the batch?")
    return dense


def _positions(length: int, kept: Array, tokens: Tokens) -> Array | None:
    """Return which of `length` dense rows stay: of all tokens, patches, or groups."""
    if length == tokens.total:
        return tokens.full(kept)
    if length == tokens.patches:
        return kept
    if tokens.group > 1 and length == tokens.patches // tokens.group:
        return tokens.groups_of(kept)
    # Some of the fixed tokens stripped, from the front.
    if tokens.patches < length < tokens.total and not tokens.after:
        return tokens.full(kept)[:, tokens.total - length :] - (tokens.total - length)
    return None


def _check_index(
    found: Arrays,
    dense: Arrays,
    names: Sequence[str],
    kept: Array,
    tokens: Tokens,
    rows: Mapping[str, Array | None],
) -> None:
    """`token_index` names the rows of the first output that has a token axis.

    Args:
        rows: of an output that holds tokens in another order, those that are left.
    """
    for name in names:
        for a, b in zip(dense[name].shape, found[name].shape, strict=True):
            if a != b:
                places = rows.get(name)
                expected = _positions(a, kept, tokens) if places is None else places
                if expected is None or not np.array_equal(found["token_index"], expected):
                    raise MismatchError("token_index does not name the kept rows")
                return
    raise MismatchError("token_index, but no output with fewer rows")


def _noise(file: File) -> dict[str, float]:
    """Return how far the dense file is from itself when ONNX Runtime computes in another order."""
    options = onnxruntime.SessionOptions()
    # `infer` runs it as it is written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in file.model.graph.output]
    plain = dict(zip(names, session.run(names, file.feed), strict=True))
    return {
        name: float(np.abs(plain[name].astype(np.float64) - file.values[name]).max(initial=0))
        for name in names
    }
