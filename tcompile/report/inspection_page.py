"""The page that a person reads to understand their model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from tcompile.analysis.sites import Verdict
from tcompile.artifact.page import giga
from tcompile.core.errors import short_names
from tcompile.core.site import SiteName
from tcompile.planning.resolution import Resolutions
from tcompile.report.inspection_info import (
    BesideInfo,
    BlockInfo,
    GroupInfo,
    OutputInfo,
    PartInfo,
    SideInfo,
    SiteInfo,
    TowerInfo,
)

#: With more blocks than this, blocks that are alike share a row.
_ROWS = 16


@dataclass(frozen=True)
class Inspection:
    """The structure of a model, and of its first tower or the one that was chosen.

    Attributes:
        tower: whose tokens, blocks and sites these are.
        towers: all towers, this one first.
        beside: attentions of no tower.
        read: the tokens whose attention `cls` scores read: (first, last), counted from the front;
            None where the model reads none.
        returned: whether that token is only part of an output that holds all tokens.
        notes: on how the file was read.
        tokens: of all kinds; `prefix` stand before the patches, `suffix` after them.
        cls: position of the token that the model reads by itself, -1 the last one; None: it reads
            none.
        segments: parts of equal size (frames, windows) that some attention sees apart.
        grid: the sides of the patches; one number where they never were a grid.
        grouping: the groups in which patches leave.
        flops: for one image.
        resolutions: the smaller images that it can take.
    """

    model: str
    opset: int
    batch: int | str
    inputs: dict[str, list[int | str]]
    outputs: tuple[OutputInfo, ...]
    tokens: int
    prefix: int
    suffix: int
    patches: int
    parts: tuple[PartInfo, ...]
    segments: int
    cls: int | None
    grid: tuple[int, ...]
    grouping: GroupInfo | None
    attention_layers: int
    flops: int
    blocks: tuple[BlockInfo, ...]
    sides: tuple[SideInfo, ...]
    sites: tuple[SiteInfo, ...]
    tower: str = ""
    towers: tuple[TowerInfo, ...] = ()
    beside: tuple[BesideInfo, ...] = ()
    read: tuple[int, int] | None = None
    returned: bool = False
    notes: tuple[str, ...] = ()
    resolutions: Resolutions = field(default_factory=Resolutions)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """The same for people, on a page."""
        return short_names(page(self))


def page(found: Inspection) -> str:
    """All that fits a page; `--json` has every name."""
    sections = [
        _head(found),
        _towers(found),
        _tokens(found),
        _blocks(found),
        _sides(found.sides),
        [*_sites(found), _resolutions(found.resolutions)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _resolutions(found: Resolutions) -> str:
    """The smaller images that the model can take, in a line."""
    if found.reason:
        return f"No smaller image (--method resolution): {found.reason}"
    grids = [sides(g) for g in found.grids]
    shown = ", ".join(grids) if len(grids) <= 3 else f"{grids[0]}, {grids[1]}, … {grids[-1]}"
    needs = f"; {', '.join(found.restored)} with --outputs restored only" if found.restored else ""
    return f"A smaller image (--method resolution) may have {shown} patches{needs}"


def ranges(names: Iterable[SiteName]) -> str:
    """`attn:0, attn:1, attn:2, output` → `attn:0–2, output`."""
    runs: dict[str, list[int]] = {}
    plain = []
    for name in names:
        if name.block is None:
            plain.append(str(name))
        else:
            runs.setdefault(name.kind, []).append(name.block)
    parts = [f"{kind}:{span}" for kind, numbers in runs.items() for span in spans(numbers)]
    return ", ".join(parts + plain)


def spans(numbers: Iterable[int]) -> list[str]:
    """`0, 1, 2, 5` → `0–2`, `5`."""
    parts = []
    pairs = enumerate(sorted(numbers))
    for _, group in groupby(pairs, key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]))
    return parts


def _head(found: Inspection) -> list[str]:
    batch = found.batch if isinstance(found.batch, int) else "free"
    lines = [f"{found.model}: opset {found.opset}, batch {batch}"]
    lines += [f"  input   {name} {dims_of(dims)}" for name, dims in found.inputs.items()]
    for out in found.outputs:
        early = out.after is not None and out.after < len(found.blocks) - 1
        depth = f", after block {out.after}" if early else ""
        lines.append(f"  output  {out.output} {dims_of(out.shape)}: {out.holds}{depth}")
    return lines + [f"  note    {note}" for note in found.notes]


def dims_of(dims: Sequence[int | str]) -> str:
    """`[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, dims))}]"


def _tokens(found: Inspection) -> list[str]:
    counts = [
        f"{found.prefix} prefix" if found.prefix else "",
        f"{found.patches} patches ({sides(found.grid)})",
        f"{found.suffix} suffix" if found.suffix else "",
    ]
    cls = "no token is read by itself"
    if found.read is not None:
        first, last = found.read
        how = "returned with all others" if found.returned else "read by itself"
        cls = f"token {first} is {how} (CLS)"
        if first != last:
            cls = f"tokens {first}–{last} are read together, apart from the patches"
    lines = [f"Tokens: {found.tokens} = {' + '.join(filter(None, counts))}; {cls}"]
    lines += [
        f"  {p.tokens} from '{p.source}'" if p.source else f"  {p.tokens} {p.kind}"
        for p in found.parts
        if p.kind != "patches"
    ]
    if found.segments > 1:
        size = found.patches // found.segments
        lines.append(
            f"  {found.segments} segments of {size} patches, of which attention sees one at a time "
            "somewhere: as many tokens leave each"
        )
    if found.grouping:
        g = found.grouping
        lines.append(
            f"  '{g.node}' joins patches in {g.groups} groups of {g.members} ({sides(g.sides)})"
        )
    return lines


def sides(numbers: Sequence[int]) -> str:
    """`14 × 14`."""
    return " × ".join(map(str, numbers))


def _towers(found: Inspection) -> list[str]:
    """The towers, where there are several, and what belongs to none."""
    lines = []
    if len(found.towers) > 1:
        lines.append(f"Towers: {len(found.towers)}; all below is of '{found.tower}'")
        lines += [
            f"  '{t.tower}': {t.blocks} blocks, {t.tokens} tokens, {t.patches} patches "
            f"({sides(t.grid)}); {_fate(t, found)}"
            for t in found.towers
        ]
    if found.beside:
        lines.append("Beside the towers, with tokens of their own that all stay")
        lines += [f"  {b.words}" for b in found.beside]
    return lines


def _fate(tower: TowerInfo, found: Inspection) -> str:
    """The effect of a schedule on a tower, in words."""
    if tower.tower == found.tower:
        return "the schedule is for it" if tower.legal else f"no site: {tower.reason}"
    if not tower.legal:
        return f"stays dense: {tower.reason}"
    if not tower.reduced:
        return f"stays dense, since '{found.tower}' was chosen"
    where = ""
    if tower.meets:
        where = f", unless that of '{found.tower}' is in its way at {tower.meets}"
    if tower.follows:
        return f"follows the same schedule{where}"
    return f"follows the schedule at the same shares of its depth and patches{where}"


def _blocks(found: Inspection) -> list[str]:
    lines = [
        f"Blocks: {len(found.blocks)}, attentions {found.attention_layers}, "
        f"{giga(found.flops)}FLOP an image; their streams begin at "
        f"'{found.blocks[0].stream_in}'"
    ]
    head = ("block", "heads", "a query sees", "attention", "FLOPs", "attention node", "stream out")
    few = len(found.blocks) <= _ROWS
    rows = [
        _block_row(list(group))
        for _, group in groupby(found.blocks, key=(lambda b: b.block) if few else _looks)
    ]
    return [*lines, *_columns(head, rows), *_unusual(found)]


def _unusual(found: Inspection) -> list[str]:
    """Attentions that are not plain, those alike on one line."""
    groups: dict[tuple[tuple[str, ...], str], list[BlockInfo]] = {}
    for block in (b for b in found.blocks if b.unusual):
        alike = re.sub(r"'[^']*'", "#", block.unread)
        groups.setdefault((block.unusual, alike), []).append(block)
    lines = []
    for (words, _), blocks in groups.items():
        which = "block" if len(blocks) == 1 else "blocks"
        line = f"  {which} {', '.join(spans(b.block for b in blocks))}: attention with "
        line += " and ".join(words)
        unread = blocks[0].unread
        lines.append(line + (f"; no score can read it: it {unread}" if unread else ""))
    return lines


def _looks(block: BlockInfo) -> tuple[object, ...]:
    """The facts that blocks which share a row have in common."""
    b = block
    return b.heads, b.attention, b.attentions, b.window, b.parallel, giga(b.flops)


def _block_row(group: list[BlockInfo]) -> tuple[str, ...]:
    first, last = group[0], group[-1]
    sees = f"{sides(first.window)} tokens" if first.window else "all tokens"
    spelled = first.attention + (f", {first.attentions} ×" if first.attentions > 1 else "")
    spelled += ", beside the MLP" if first.parallel else ""
    more = len(group) > 1
    return (
        spans(b.block for b in group)[0],
        str(first.heads),
        sees,
        spelled,
        giga(first.flops),
        f"{first.node} … {last.node}" if more else first.node,
        f"{first.stream_out} … {last.stream_out}" if more else first.stream_out,
    )


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[short_names(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _sides(found: Sequence[SideInfo]) -> list[str]:
    """Side inputs, those of one kind and shape together."""
    if not found:
        return []
    lines = ["Side inputs, which follow the tokens that stay"]
    groups: dict[tuple[object, ...], list[SideInfo]] = {}
    for side in found:
        groups.setdefault((side.kind, side.shape, side.axes, side.live), []).append(side)
    for group in groups.values():
        first = group[0]
        blocks = sorted({b for side in group for b in side.blocks})
        many = (
            f"{len(group)} tensors, '{first.tensor}' …" if len(group) > 1 else f"'{first.tensor}'"
        )
        axes = "axis" if len(first.axes) == 1 else "axes"
        where = f"blocks {', '.join(spans(blocks))}" if blocks else "outside of the blocks"
        made = ", computed from the image" if first.live else ""
        lines.append(
            f"  {first.kind} {dims_of(first.shape)}{made}: {many}, tokens along {axes} "
            f"{', '.join(map(str, first.axes))}, in {where}"
        )
    return lines


# ---- sites ---------------------------------------------------------------------------------------

_Reason = Callable[[SiteInfo], str]
_Step = Callable[[SiteInfo], int]


def _sites(found: Inspection) -> list[str]:
    leaving = [s for s in found.sites if not s.site.returns]
    around = [s for s in found.sites if s.site.kind == "around"]
    inside = [s for s in found.sites if s.site.kind == "inside"]
    lines = _leave("Tokens may leave at", leaving, "reduced", lambda s: s.granularity, found)
    reduced = [(s.site, s.reduced, s.granularity) for s in leaving if s.legal]
    restored = [(s.site, s.restored, s.restored_granularity) for s in leaving]
    if [each for each in restored if not each[1].reason] != reduced:
        lead, step = "With --outputs restored they may leave at", lambda s: s.restored_granularity
        lines += _leave(lead, leaving, "restored", step, found)
    lines.append(_may("Tokens may bypass blocks at", [s for s in around if s.legal]))
    lines += _folded(around, lambda s: s.reduced.reason, "not at")
    merging = [s for s in inside if s.legal and not s.reduced.merge]
    lines.append(_may("They may merge for an attention at", merging))
    return lines + _folded(inside, lambda s: s.reduced.reason or s.reduced.merge, "not at")


def _may(what: str, sites: Sequence[SiteInfo]) -> str:
    return f"{what} {ranges(s.site for s in sites) or 'no site'}"


def _leave(
    what: str, leaving: Sequence[SiteInfo], outputs: str, step: _Step, found: Inspection
) -> list[str]:
    """Return where tokens may leave with outputs `reduced` or `restored`; where not, and why."""

    def verdict(site: SiteInfo) -> Verdict:
        return site.reduced if outputs == "reduced" else site.restored

    free = [s for s in leaving if not verdict(s).reason]
    return [
        _may(what, free),
        *_together(free, step, found),
        *_folded(leaving, lambda s: verdict(s).reason, "not at"),
        *_folded(free, lambda s: verdict(s).merge, "without merging at"),
        *_folded(free, lambda s: verdict(s).fuse, "without fusing at"),
        *_folded(free, lambda s: verdict(s).drop, "only by merging at"),
    ]


def _together(sites: Sequence[SiteInfo], step: _Step, found: Inspection) -> list[str]:
    """The sites where tokens cannot leave one by one."""
    lines = []
    for size, group in groupby((s for s in sites if step(s) > 1), key=step):
        members = size // found.segments
        how = f"in whole groups of {members}" if members > 1 else "as many"
        each = f" from each of {found.segments} segments" if found.segments > 1 else ""
        lines.append(f"  {how}{each} at {ranges(s.site for s in group)}")
    return lines


def _folded(sites: Sequence[SiteInfo], reason: _Reason, what: str) -> list[str]:
    """One line for all sites whose reasons differ in names and numbers only."""
    groups: dict[str, list[SiteInfo]] = {}
    for site in sites:
        text = reason(site)
        if text:
            groups.setdefault(re.sub(r"'[^']*'|\d+", "#", text), []).append(site)
    lines = []
    for group in groups.values():
        texts = {reason(s) for s in group}
        alike = f" (and {len(texts) - 1} alike)" if len(texts) > 1 else ""
        lines.append(f"  {what} {ranges(s.site for s in group)}: {reason(group[0])}{alike}")
    return lines
