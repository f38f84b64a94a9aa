"""Procedural scenes, each drawn once a process: tests ask for the same few, again and again."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tcompile.runtime import scenes

#: Values of the largest image that is kept.
_LARGEST = 3 * 256 * 256


def remember_scenes() -> None:
    """Let scenes of the same size from the same state of a generator be drawn once from now on; the
    generator is left as drawing leaves it."""
    draw = scenes.draw

    @lru_cache(maxsize=512)
    def kept(state: str, *asked: Any) -> tuple[Any, Any]:
        rng = np.random.default_rng()
        rng.bit_generator.state = states[state]
        image = draw(rng, *asked)
        return image, rng.bit_generator.state

    states: dict[str, Any] = {}

    def drawn(rng: np.random.Generator, height: int, width: int, *rest: Any, **more: Any) -> Any:
        if 3 * height * width > _LARGEST or more:
            return draw(rng, height, width, *rest, **more)
        state = rng.bit_generator.state
        states[key := repr(state)] = state
        image, after = kept(key, height, width, *rest)
        del states[key]
        rng.bit_generator.state = after
        return image.copy()

    scenes.draw = drawn
