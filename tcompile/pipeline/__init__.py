"""The whole compiler: read → plan → reduce → lower → emit → measure → write.

`plan`, `price` and `reduce` go a part of the way (`reducing`); `build` goes all of it (`building`).
What cannot be done is known before anything is written.
"""

from tcompile.pipeline.building import build
from tcompile.pipeline.reading import explain, inspect, read
from tcompile.pipeline.reducing import apply_schedule, plan, price, reduce

__all__ = ["apply_schedule", "build", "explain", "inspect", "plan", "price", "read", "reduce"]
