"""SCH6: published lists of counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import Context, Values
from tcompile.methods.counts import half_up
from tcompile.methods.schedulers.base import Place, Scheduler, places

#: Patch tokens after each block.
Counts = Sequence[int]


def leaving(key: str, tables: Mapping[str, Sequence[Sequence[int]]]) -> Scheduler:
    """As many tokens leave each block as a list says; the list is the one of the model's depth.

    Args:
        key: the parameter that names the table.
        tables: name → lists, each for another depth.
    """
    default = next(iter(tables))

    def run(context: Context, values: Values) -> list[Place]:
        blocks, total = context.shape.blocks, context.shape.patches
        found = {len(r): r for r in tables[values[key] or default]}
        if values[key] is None:
            return along(context, _after(196, next(iter(found.values()))))
        if blocks not in found:
            raise _other_depth(context, values[key], list(found))
        goals = zip(map(context.site, range(blocks)), _after(total, found[blocks]), strict=True)
        return places(context, goals, half=True)

    return Scheduler("in every block, by a published list", run, _stretched(key, default))


def counted(key: str, tables: Mapping[str, Counts]) -> Scheduler:
    """Counts after each block as a table says, made for exactly as many blocks and tokens."""
    default = next(iter(tables))

    def run(context: Context, values: Values) -> list[Place]:
        blocks, total = context.shape.blocks, context.shape.patches
        counts = tables[values[key] or default]
        if values[key] is None:
            return along(context, counts, half=False)
        if blocks != len(counts):
            raise _other_depth(context, values[key], [len(counts)])
        if total != 196:
            raise UsageError(
                f"{context.method}:{values[key]} was published for 196 patches, "
                f"this model has {total}",
                where="--method",
                hint="say --keep R in its place",
            )
        return places(context, zip(map(context.site, range(blocks)), counts, strict=True))

    return Scheduler("in every block, by a published table", run, _stretched(key, default))


def along(context: Context, counts: Counts, total: int = 196, *, half: bool = True) -> list[Place]:
    """Down to exactly what --keep says, what leaves shared out over the depth as in a list."""
    blocks, patches = context.shape.blocks, context.shape.patches
    removed = [Fraction(0), *(Fraction(total - c, total - counts[-1]) for c in counts)]
    goals: list[tuple[SiteName, int]] = []
    for block in range(blocks):
        at = Fraction((block + 1) * len(counts), blocks)
        low = int(at)
        high = min(low + 1, len(counts))
        share = removed[low] + (removed[high] - removed[low]) * (at - low)
        goals.append((context.site(block), patches - half_up((patches - context.final) * share)))
    return places(context, goals, half=half)


def _after(total: int, r: Sequence[int]) -> list[int]:
    """Counts from what leaves; at most half of the tokens find a partner."""
    found, count = [], total
    for one in r:
        count -= min(one, count // 2)
        found.append(count)
    return found


def _stretched(key: str, default: str) -> Callable[[Context, Values], tuple[str, ...]]:
    def notes(context: Context, values: Values) -> tuple[str, ...]:
        if values[key] is not None:
            return ()
        return (
            f"what leaves is shared out over the depth as in {context.method}:{key}={default}, "
            "scaled to --keep",
        )

    return notes


def _other_depth(context: Context, name: str, depths: Sequence[int]) -> UsageError:
    made = " or ".join(map(str, depths))
    return UsageError(
        f"{context.method}:{name} was published for {made} blocks, this model has "
        f"{context.shape.blocks}",
        where="--method",
        hint="say --keep R in its place",
    )
