"""Check that the reduced model kept the right tokens, by the probabilities of the dense file."""

from __future__ import annotations

from math import isqrt

import numpy as np

from tests.oracles.compare import MismatchError
from tests.oracles.dense_file import Array, Arrays, File, Tokens, attribute_of
from tests.oracles.dense_parts import Core

#: Scores this close, relative to the largest, are a tie.
TIE = 2e-5


def seen_by(file: File, core: Core) -> list[str]:
    """Return what `probabilities` reads."""
    if core.form == "softmax":
        return [core.logits]
    return [n for n in file.nodes[core.node].input if n in file.maker or n in file.live]


def probabilities(core: Core, file: File, values: Arrays, batch: int) -> Array:
    """softmax(logits) of the masked dense run, [B, h, N, N] in float64."""
    node = file.nodes[core.node]
    if core.form == "op":
        q, k = (values[name].astype(np.float64) for name in node.input[:2])
        if q.ndim == 3:
            heads = [int(attribute_of(node, f"{x}_num_heads", 1)) for x in ("q", "kv")]
            q, k = (
                x.reshape(*x.shape[:2], h, -1).swapaxes(1, 2)
                for x, h in zip((q, k), heads, strict=True)
            )
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        scale = float(attribute_of(node, "scale", q.shape[-1] ** -0.5)) or q.shape[-1] ** -0.5
        logits = scale * (q @ k.swapaxes(-1, -2))
        if len(node.input) > 3 and node.input[3]:
            mask = file.constant(node.input[3])
            mask = values[node.input[3]] if mask is None else mask
            logits = logits + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask)
    else:
        logits = values[core.logits].astype(np.float64)
    logits = logits.reshape(batch, -1, *logits.shape[-2:])
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def scores(name: str, chances: Array, before: Array, tokens: Tokens) -> Array:
    """[B, T'] score of each patch that entered the cut. `before`: [B, T'] these patches."""
    batch, _, _, length = chances.shape
    columns = tokens.full(before)
    if name == "cls":
        rows = np.full((batch, 1), 0 if tokens.before else tokens.patches)
    else:
        count = before.shape[1]
        m = isqrt(count - 1) + 1
        picks = [((2 * i + 1) * count) // (2 * m) for i in range(m)]
        # Groups only stand together once the first tokens have left.
        stream = np.sort(before, axis=1) if count == tokens.patches else before
        rows = stream[:, picks] + tokens.before
    chances = np.take_along_axis(chances, rows[:, None, :, None], axis=2)
    # Keys that an earlier cut dropped have no part in the softmax.
    alive = np.zeros((batch, 1, 1, length))
    np.put_along_axis(alive, columns[:, None, None], 1.0, axis=3)
    chances = chances * alive / (chances * alive).sum(-1, keepdims=True)
    mean = chances.mean(axis=(1, 2))
    score = np.take_along_axis(mean, before + tokens.before, axis=1)
    return score.reshape(batch, -1, tokens.group).mean(-1)


def check_choice(score: Array, before: Array, kept: Array, what: str, tokens: Tokens) -> None:
    """The kept groups are those with the best scores, ascending. Raises MismatchError."""
    stayed, entered = tokens.groups_of(kept), tokens.groups_of(before)
    if (np.diff(stayed, axis=1) <= 0).any():
        raise MismatchError(f"{what}: kept tokens are not in order")
    for row in range(len(before)):
        inside = np.isin(entered[row], stayed[row])
        worst, best = score[row][inside].min(), score[row][~inside].max()
        if worst < best - TIE * np.abs(score[row]).max():
            raise MismatchError(
                f"{what}: kept a token of score {worst:.6g} and dropped one of {best:.6g}"
            )
