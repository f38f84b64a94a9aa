"""The methods that `auto` chooses among, and whose steps a profile has unless told otherwise."""

from __future__ import annotations

#: What `auto` tries with images, in order; without, the first that fits the model: losses
#: of different methods cannot be compared then. `evit` keeps a trace of what leaves; where a fused
#: token has no place (rotary tables, position bias, groups), `topk` drops it. `mctf` and `turbo`
#: merge: they lost least of all presets on `zoo:glyphs`, step by step, at the price of more nodes.
PORTFOLIO = ("evit", "topk", "mctf", "turbo")
