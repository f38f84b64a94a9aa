"""An encoder walked with one rule at each site, whatever the rule does with the tokens there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tests.oracles.attending import Attended, attend
from tests.oracles.choices import Step
from tests.oracles.methods import Margin, Result, _Walk
from tests.oracles.presets.merging import pooled
from tests.oracles.stream import Block, Encoder, attention, gather

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """The attention of a block: q, k, v [B, H, N, d] as they met, logits q·k (times the scale, with
    whatever is added) and their softmax [B, H, N, N]. index [B, T]: the original patches."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    logits: Tensor
    index: Tensor

    @property
    def attention(self) -> Tensor:
        return self.logits.softmax(dim=-1)


@dataclass(frozen=True)
class View:
    """What a rule may read of the T patches at a site, and of the N tokens of its block.

    x: [B, T, C].  sizes: [B, T] or None.  own: the block's attention.  seen: those before, the own
    one last.  places: [B, T], which original patch each is.  start: [B, T0, C], the patches as they
    enter the first block.  grid: of the T0 original patches.  now: of the T tokens, where they
    still are one.  number: of the site, from 0.
    """

    x: Tensor
    sizes: Tensor | None
    own: Seen
    seen: Sequence[Seen]
    places: Tensor
    start: Tensor
    prefix: int
    grid: Grid
    block: int
    blocks: int
    number: int
    keep: int

    @property
    def end(self) -> int:
        return self.prefix + self.x.shape[1]

    @property
    def keys(self) -> Tensor:
        """[B, T, d]: the mean over heads."""
        return self.own.k[:, :, self.prefix : self.end].mean(dim=1)

    @property
    def cls(self) -> Tensor:
        """[B, T]: the mean over heads of what the class token attends to, among all tokens."""
        return self.own.attention[:, :, 0, self.prefix : self.end].mean(dim=1)


Rule = Callable[[View], Step]


@dataclass(frozen=True)
class Plan:
    """rules: by site. proportional: whether attention counts keys by size afterwards. grids: by
    site, of the tokens that leave it."""

    rules: Mapping[str, Rule]
    keep: Mapping[str, int]
    grid: Grid
    proportional: bool = True
    grids: dict[str, Grid] = field(default_factory=dict)


def walk(encoder: Encoder, image: Tensor, plan: Plan, outputs: str = "reduced") -> Result:
    """The encoder on image [B, 3, H, W] with the plan's rules at its sites."""
    steps = _Planned(encoder, image, plan, outputs == "restored")
    for i, block in enumerate(encoder.blocks):
        steps.block(i, block)
    return steps.end()


class _Planned(_Walk):
    def __init__(self, encoder: Encoder, image: Tensor, plan: Plan, restored: bool) -> None:
        super().__init__(encoder, image, {}, restored)
        self.plan, self.number, self.seen = plan, 0, list[Seen]()
        self.start = self.stream.x[:, encoder.prefix :]

    def both_halves(self, i: int, block: Block) -> None:
        stream, arriving = self.stream, self.stream.x.shape[1]
        if f"inside:{i}" in self.plan.rules:
            self.inside(i, block)
            self.stream = replace(self.stream, x=block.mlp(self.stream.x))
            return
        attended = attend(block, stream, self.tables(block), self.index)
        self.look(block, attended)
        self.stream = replace(stream, x=attended.after)
        self.at_site(f"attn:{i}", i)
        self.entering.append((arriving, self.stream.x.shape[1]))
        self.stream = replace(self.stream, x=block.mlp(self.stream.x))
        self.at_site(f"block:{i}", i)
        if i == len(self.encoder.blocks) - 1 and "output" in self.plan.rules:
            self.at = {"output": None}  # type: ignore[dict-item]  # so that the norm comes once
            self.stream = replace(self.stream, x=self.encoder.norm(self.stream.x))
            self.at_site("output", i)

    def look(self, block: Block, attended: Attended) -> None:
        _, _, v = block.heads(self.stream.x, self.index)
        logits = attended.q @ attended.k.transpose(-1, -2) * block.scale
        if attended.bias is not None:
            logits = logits + attended.bias
        p = self.encoder.prefix
        places = self.index[:, p:] - p
        self.seen.append(Seen(attended.q, attended.k, v, block.scale, logits, places))

    def view(self, x: Tensor, site: str, i: int) -> View:
        p, sizes = self.encoder.prefix, self.stream.sizes
        return View(
            x=x[:, p:],
            sizes=None if sizes is None else sizes[:, p:],
            own=self.seen[-1],
            seen=self.seen,
            places=self.index[:, p:] - p,
            start=self.start,
            prefix=p,
            grid=self.plan.grid,
            block=i,
            blocks=len(self.encoder.blocks),
            number=self.number,
            keep=self.plan.keep[site],
        )

    def at_site(self, site: str, i: int) -> None:
        if site not in self.plan.rules:
            return
        step = self.plan.rules[site](self.view(self.stream.x, site, i))
        self.number += 1
        if step.x.shape[1] != self.plan.keep[site]:
            raise ValueError(f"{site}: {step.x.shape[1]} left, {self.plan.keep[site]} planned")
        self.margins += [Margin(site, what, gap) for what, gap in step.margins]
        self.stream = replace(self.stream, proportional=self.plan.proportional)
        self.follow(step, taps=not self.restored)

    def inside(self, i: int, block: Block) -> None:
        """Tokens merge for this attention only: their plain means, copied back afterwards. q, k and
        v are linear in what is merged, so that they may be averaged instead."""
        stream, p = self.stream, self.encoder.prefix
        attended = attend(block, stream, self.tables(block), self.index)
        self.look(block, attended)
        site = f"inside:{i}"
        step = self.plan.rules[site](self.view(stream.x, site, i))
        self.number += 1
        self.margins += [Margin(site, what, gap) for what, gap in step.margins]
        fixed = torch.arange(p).expand(len(stream.x), -1)
        owner = torch.cat([fixed, p + step.owner], dim=1)
        count, weight = p + step.x.shape[1], torch.ones_like(owner).to(stream.x)
        seen = self.seen[-1]
        q, k, v = (
            torch.stack([pooled(part[:, h], weight, owner, count) for h in range(part.shape[1])], 1)
            for part in (seen.q, seen.k, seen.v)
        )
        context = gather(attention(q, k, v, block.scale), owner)
        self.stream = replace(stream, x=block.attend(stream.x, context))
        self.entering.append((count, stream.x.shape[1]))
