"""Attentions that are spelled at random."""

from __future__ import annotations

import onnx

from tests.support.attention_spelling import MIXES, NORMS, OTHERS, PRODUCTS, Spelling, respell
from tests.support.fuzz_draft import Draft, shapes_of


def attention_respelled(d: Draft) -> str | None:
    """Some of the attentions are written otherwise, each its own way, or become other ones."""
    rng, done = d.rng, []
    for _ in range(4):
        if rng.random() < 0.3:
            continue
        if rng.random() < 0.6:
            parts = (rng.choice(sorted(names)) for names in (PRODUCTS, NORMS, MIXES))
            spelling = Spelling(*parts)
        else:
            spelling = Spelling(other=rng.choice(sorted(OTHERS)))
        model = onnx.ModelProto()
        model.CopyFrom(d.model)
        del model.graph.value_info[:]
        scope = d.fresh("attention")
        try:
            if not respell(model, spelling, range(1), scope=scope, seed=rng.randrange(1 << 16)):
                break
            d.shapes.update(shapes_of(model))
        except ValueError:
            break
        d.model = model
        done.append(spelling.other or f"{spelling.product}, {spelling.norm}, {spelling.mix}")
    return "; ".join(done) or None


ATTENTION = (attention_respelled,)
