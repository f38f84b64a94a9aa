"""One case of the fuzz run: a seed makes a model, a method and the verdict, the same every time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx

from tests.support.fuzz import MUTATIONS, mutate
from tests.support.fuzz_attention import ATTENTION
from tests.support.fuzz_following import FOLLOWING
from tests.support.judge import WrongError, judge
from tests.support.spelled_vit import PLACES, Shape, write
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

METHODS = ("topk", "topk", "topk:block=0,site=block", "topk:site=output", "tome", "evit", "bypass")
#: What a case may end as; `wrong` and `crashed` are faults of tcompile.
OUTCOMES = ("equal", "ran", "dense", "refused", "broken", "wrong", "crashed", "slow")


@dataclass(frozen=True)
class Result:
    """outcome: one of OUTCOMES; note: why; did: the mutations, in order."""

    seed: int
    outcome: str
    note: str
    base: str
    method: str
    did: tuple[str, ...]

    @property
    def mutations(self) -> tuple[str, ...]:
        return tuple(sorted({line.partition(":")[0] for line in self.did}))

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "did": list(self.did)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Result:
        return cls(**{**document, "did": tuple(document["did"])})


def bases(folder: Path) -> list[Path]:
    """The sound models that are mutated, written once."""
    found = []
    for prefix in (0, 1, 3):
        for batch in (1, 2, None):
            for pool in ("cls", "avg", "none") if prefix else ("avg", "none"):
                path = folder / f"vit-p{prefix}-b{batch or 'free'}-{pool}.onnx"
                if not path.exists():
                    spec = VitSpec(image=24, patch=6, width=12, depth=2, prefix=prefix, pool=pool)  # type: ignore[arg-type]
                    onnx.save(build_vit(spec, random_weights(spec), batch=batch), path)
                found.append(path)
    for place in PLACES:
        for batch in (2, None):
            path = folder / f"spelled-{place}-b{batch or 'free'}.onnx"
            if not path.exists():
                write(Shape(place, 1, batch=batch), path)
            found.append(path)
    return found


@lru_cache(maxsize=64)
def _loaded(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def case(seed: int, folder: Path) -> tuple[onnx.ModelProto, str, str, list[str]]:
    """The model of a seed, the method, the base it was made of, and what was done to it.

    Every third case has its attentions spelled otherwise first, two thirds have one of `FOLLOWING`
    next.
    """
    rng = random.Random(seed)
    base, method = rng.choice(bases(folder)), rng.choice(METHODS)
    model, log = _loaded(base), list[str]()
    if rng.random() < 1 / 3:
        model, log = mutate(model, rng.randrange(1 << 30), [f.__name__ for f in ATTENTION])
    if rng.random() < 2 / 3:
        names, more = [f.__name__ for f in FOLLOWING], list[str]()
        source = model
        while not more:  # some find nothing to do
            model, more = mutate(source, rng.randrange(1 << 30), names)
        log += more
    if not log or rng.random() < 0.25:
        model, more = mutate(model, rng.randrange(1 << 30), sorted(MUTATIONS))
        log += more
    return model, method, base.stem, log


def tried(seed: int, folder: Path, scratch: Path) -> Result:
    """Judge one case."""
    model, method, base, log = case(seed, folder)
    path = scratch / f"{seed}.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        outcome = judge(path, method)
        kind, note = outcome.kind, outcome.note
    except WrongError as error:
        kind, note = "wrong", str(error)
    except Exception as error:  # a crash of tcompile's is what is looked for
        kind, note = "crashed", f"{type(error).__name__}: {error}"
    finally:
        path.unlink(missing_ok=True)
    return Result(seed, kind, " ".join(note.split())[:300], base, method, tuple(log))
