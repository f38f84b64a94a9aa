"""The counting oracle for files with several towers: each loses tokens of its own.

One walk through the dense file with the cuts of every tower, each at its own stream with its own
tokens. Dropping alone; what merges or bypasses in several towers raises `InapplicableError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from tests.oracles.compare import MismatchError, infer
from tests.oracles.dense_file import Array, Arrays, File, InapplicableError, Tokens, exposing
from tests.oracles.masked import FACTOR, FLOOR, SMALL, _drift, _present_rows, cuts_of
from tests.oracles.present import Held, IllegalError
from tests.oracles.present_walk import Cut, Walk, outputs_of


@dataclass(frozen=True)
class Tower:
    """Tokens that one tower loses: the JSON of its steps, how its tokens lie, site → the stream
    there."""

    schedule: Mapping[str, Any]
    tokens: Tokens
    places: Mapping[str, str]


def check_towers(
    dense: onnx.ModelProto, reduced: onnx.ModelProto, towers: Sequence[Tower], feed: Arrays
) -> None:
    """Compare a reduced model with the dense file worked out without the tokens of each tower.

    Raises:
        MismatchError: saying where the two differ.
        InapplicableError: the oracle says nothing of this model.
    """
    if any(tower.tokens.total > SMALL for tower in towers):
        raise InapplicableError("large")
    file, used = File(dense, feed), dict[str, int]()
    cuts: dict[str, Array | Cut] = {}
    for tower in towers:
        steps = cuts_of(tower.schedule)
        if any(step.place == "around" for step in steps):
            raise InapplicableError("bypass in several towers")
        few: Array | None = None
        for step in steps:
            index = _chosen(reduced, feed, step.site, used)
            few = index if few is None else np.take_along_axis(few, index, axis=1)
            members = tower.tokens.members()[few].reshape(len(few), -1)
            if members.shape[1] != step.keep:
                raise MismatchError(f"{step.site} keeps {members.shape[1]} of {step.keep}")
            stream = file.origin(tower.places[step.site])
            if stream in cuts:
                raise InapplicableError("two towers leave one stream")
            cuts[stream] = _leaving(tower.tokens, members)
    found = infer(reduced, feed)
    try:
        tokens = towers[0].tokens
        expected, noise = outputs_of(Walk(file, tokens, cuts), file), _drift(file, tokens)
    except IllegalError as error:
        raise MismatchError(f"should have been refused: {error}") from error
    batch = len(next(iter(feed.values())))
    for name, held in expected.items():
        if held.full.all() and held.value.shape != found[name].shape:
            continue  # from before tokens left; which tower's are left of it is not told
        if not held.full.all() and held.full.any(-1).all():
            raise InapplicableError(f"'{name}' joins features of towers that lost others")
        value = _present_rows(held, found.get(name), name, batch)
        error = float(np.abs(found[name].astype(np.float64) - value).max(initial=0))
        allowed = FACTOR * max(noise[name], FLOOR * float(np.abs(value).max(initial=0)))
        if not error <= allowed:
            raise MismatchError(f"{name}: error {error:.2e}, allowed {allowed:.2e}")


def _leaving(tokens: Tokens, few: Array) -> Cut:
    def cut(walk: Walk, held: Held) -> Held:
        return Walk._cut(SimpleNamespace(tokens=tokens), held, few)  # type: ignore[arg-type]

    return cut


def _chosen(reduced: onnx.ModelProto, feed: Arrays, site: str, used: dict[str, int]) -> Array:
    """[B, K] what the reduced model keeps at a site: of several towers, one after the other."""
    start = f"tcompile/{site.replace(':', '_')}/"
    nodes = [
        n for n in reduced.graph.node if n.op_type == "TcTopKTokens" and n.name.startswith(start)
    ]
    nodes.sort(key=lambda n: int((re.findall(r"_(\d+)$", n.name) or ["0"])[0]))
    turn = used.get(site, 0)
    used[site] = turn + 1
    if turn >= len(nodes):
        raise InapplicableError(f"no choice of tokens at {site}")
    name = nodes[turn].output[0]
    return infer(exposing(reduced, [name]), feed)[name]
