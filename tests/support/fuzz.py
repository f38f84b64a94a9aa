"""Random damage and random rewriting of ONNX models: a seed makes a case, the same every time.

`MUTATIONS` maps names to functions (draft) → what was done, or None where there was nothing to do
it to. Some only respell a model, most change what it computes, many break it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import onnx

from tests.support.fuzz_attention import ATTENTION
from tests.support.fuzz_damage import DAMAGE
from tests.support.fuzz_draft import Draft
from tests.support.fuzz_following import FOLLOWING
from tests.support.fuzz_spelling import SPELLING
from tests.support.fuzz_tokens import TOKENS

Mutation = Callable[[Draft], str | None]
MUTATIONS: Mapping[str, Mutation] = {
    f.__name__: f for f in (*DAMAGE, *TOKENS, *SPELLING, *FOLLOWING, *ATTENTION)
}


def mutate(
    model: onnx.ModelProto, seed: int, names: Sequence[str] = ()
) -> tuple[onnx.ModelProto, list[str]]:
    """A changed copy of the model and what was changed, one to three things.

    Args:
        seed: decides all.
        names: the mutations to choose from; all by default.
    """
    rng = random.Random(seed)
    draft = Draft(model, rng)
    log: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(list(names) or list(MUTATIONS))
        done = MUTATIONS[name](draft)
        if done is not None:
            log.append(f"{name}: {done}")
            if name == "ask_for_much":
                break  # other changes would compute what it asks for
    return draft.model, log
