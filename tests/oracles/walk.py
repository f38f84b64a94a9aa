"""The tokens on their way through an encoder, leaving where a reduction says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from tests.oracles.attending import Attended, attend, rows_of
from tests.oracles.choices import Step, attn_score, cls_score, fuse, tome, topk, topk_groups
from tests.oracles.moments import Attention, Moment, Past
from tests.oracles.reductions import Margin, Reduction, Result
from tests.oracles.restoring import Left, closest, given_back
from tests.oracles.segments import diagonal, folded, select_in, unfolded
from tests.oracles.stream import Block, Encoder, Stream, attention, gather


class Walk:
    """The tokens on their way through the encoder."""

    def __init__(
        self,
        encoder: Encoder,
        image: Tensor,
        at: Mapping[str, Reduction],
        restored: bool,
        rule: str = "owner",
    ) -> None:
        self.encoder, self.at, self.restored = encoder, at, restored
        self.rule, self.left = rule, list[Left]()
        self.stream = Stream(encoder.embed(image))
        batch, self.total, _ = self.stream.x.shape
        everyone = torch.arange(self.total).expand(batch, -1)
        self.index, self.owner = everyone, everyone
        self.size = torch.ones(batch, self.total, dtype=self.stream.x.dtype)
        self.mask = None if encoder.mask is None else encoder.mask(image)
        self.groups = encoder.groups
        if self.groups is not None and restored:
            unit = self.groups.shape[1] * encoder.segments
            if any(cut.kind != "topk" or cut.keep % unit for cut in at.values()):
                self.groups = None
        if any(cut.kind == "back" for cut in at.values()):
            self.groups = None  # nothing is joined before they are all there again
        self.margins: list[Margin] = []
        self.entering: list[tuple[int, int]] = []
        self.past: tuple[Past, ...] = ()
        self.embedded = self.last = self.stream.x[:, self.inner()]
        self.state: dict[str, Any] = {}

    def inner(self) -> slice:
        """The patches among the tokens."""
        return slice(self.encoder.prefix, self.stream.x.shape[1] - self.encoder.suffix)

    def moment(
        self, cut: Reduction, block: Block, attended: Attended, past: tuple[Past, ...]
    ) -> Moment:
        return Moment(
            encoder=self.encoder,
            stream=self.stream,
            attention=Attention(attended, block.scale, self.inner()),
            cut=cut,
            places=torch.where(self.index < 0, -1, self.index - self.encoder.prefix)[
                :, self.inner()
            ],
            blocks=len(self.encoder.blocks),
            embedded=self.embedded,
            last=self.last,
            groups=self.groups,
            past=past,
            state=self.state,
        )

    def ran(self, block: Block, attended: Attended, where: Tensor) -> None:
        """Remember a block's attention, and which of its patches each patch is."""
        inner = slice(self.encoder.prefix, attended.q.shape[2] - self.encoder.suffix)
        self.past = (*self.past, Past(Attention(attended, block.scale, inner), where))

    def block(self, i: int, block: Block) -> None:
        if block.late is not None:
            late = rows_of(block.late, self.index)
            self.stream = replace(self.stream, x=self.stream.x + late)
        if (cut := self.at.get(f"around:{i}")) is not None:
            self.bypass(block, cut)
        elif block.whole is not None:
            count = self.stream.x.shape[1]
            if count != self.total:
                raise ValueError(f"block {i} needs every token in its place")
            self.stream = replace(self.stream, x=block.whole(self.stream.x))
            self.entering.append((count, count))
        else:
            self.both_halves(i, block)
        if i in self.encoder.taps:
            x = self.whole() if self.restored else self.stream.x
            self.stream = replace(self.stream, taps=(*self.stream.taps, x))

    def whole(self) -> Tensor:
        """[B, N, C], a row for every original token, by the rule."""
        x, inner = self.stream.x, self.inner()
        if self.rule == "owner" or not self.left:
            return gather(x, self.owner)
        side = isqrt(self.left[0].before.shape[1])
        patches = given_back(self.left, self.rule, (side, side), x[:, inner])
        if self.rule == "nearest" and (gap := closest(self.left)).isfinite().any():
            self.margins.append(Margin("restored", "owner", gap))
        return torch.cat([x[:, : inner.start], patches, x[:, inner.stop :]], dim=1)

    def both_halves(self, i: int, block: Block) -> None:
        """Attention and MLP, and what leaves after each (and behind the last block)."""
        arriving = self.stream.x.shape[1]
        attended = attend(block, self.stream, self.tables(block), self.index)
        if (cut := self.at.get(f"inside:{i}")) is not None:
            attended = self.inside(cut, block, attended)
        self.ran(
            block,
            attended,
            torch.arange(arriving)[: self.inner().stop - self.inner().start].expand(
                len(self.index), -1
            ),
        )
        self.stream = replace(self.stream, x=attended.after)
        self.reduce(f"attn:{i}", arriving, block, attended)
        self.entering.append((arriving, self.stream.x.shape[1]))
        self.stream = replace(self.stream, x=block.mlp(self.stream.x))
        self.reduce(f"block:{i}", arriving, block, attended)
        if i == len(self.encoder.blocks) - 1 and "output" in self.at:
            self.stream = replace(self.stream, x=self.encoder.norm(self.stream.x))
            self.reduce("output", arriving, block, attended)

    def patches_at(self) -> Tensor:
        """[B, T]: the original patch that each one is, below 0 where it is new."""
        index = self.index[:, self.inner()]
        return torch.where(index < 0, -1, index - self.encoder.prefix)

    def tables(self, block: Block) -> list[Tensor]:
        return [table for table in (self.mask, block.bias) if table is not None]

    def reduce(self, site: str, arriving: int, block: Block, attended: Attended) -> None:
        """Let tokens leave, if any are to leave here."""
        cut = self.at.get(site)
        if cut is None:
            return
        if self.stream.x.shape[1] != arriving:
            raise ValueError(f"{site}: the attention of this block had other tokens")
        moment = self.moment(cut, block, attended, self.past[:-1])
        if cut.kind == "back":
            self.back(moment)
            return
        step = (
            cut.decide(moment)
            if cut.decide is not None
            else _reduce(self.encoder, self.stream, cut, block, attended, self.groups)
        )
        if step.x.shape[1] != cut.keep:
            raise ValueError(f"{site}: {step.x.shape[1]} tokens, not {cut.keep}")
        self.margins += [Margin(site, what, gap) for what, gap in step.margins]
        if cut.kind == "tome" or (cut.decide is not None and step.sizes is not None):
            self.stream = replace(self.stream, proportional=cut.proportional)
        came = self.patches_at()
        places = gather(came, step.source.clamp(min=0)).masked_fill(step.source < 0, -1)
        merges = step.sizes is not None and bool((step.source >= 0).all())
        self.left.append(
            Left(
                self.stream.x[:, self.inner()],
                step.x,
                came,
                places,
                step.owner,
                merges,
                self.encoder.segments,
            )
        )
        self.remember()
        self.past = tuple(past.followed(step.source) for past in self.past)
        self.follow(step, taps=not self.restored)
        if self.groups is not None:
            self.groups = torch.arange(cut.keep).view(-1, self.groups.shape[1])

    def bypass(self, block: Block, cut: Reduction) -> None:
        """The best patches, with prefix and suffix, run through the block; the others do not."""
        stream, p = self.stream, self.encoder.prefix
        end = stream.x.shape[1] - self.encoder.suffix
        if not 1 <= cut.keep < end - p:
            raise ValueError(f"{cut.site}: cannot keep {cut.keep} of {end - p} tokens")
        tables = self.tables(block)
        attended = attend(block, stream, tables, self.index)
        if cut.decide is not None:
            score = cut.decide(self.moment(cut, block, attended, self.past))
            kept, gap = select_in(score, cut.keep, self.encoder.segments)
            self.margins.append(Margin(cut.site, "relative", gap / score.abs().amax(dim=1)))
        else:
            score = _score(self.encoder, stream, cut, block, attended)
            kept, gap = select_in(score, cut.keep, self.encoder.segments)
            self.margins.append(Margin(cut.site, _KEPT.get(cut.score, "kept"), gap))
        whole = torch.arange(self.total).expand(len(kept), -1)
        rows = torch.cat([whole[:, :p], p + kept, whole[:, end:]], dim=1)
        part = Stream(gather(stream.x, rows))
        inside = attend(block, part, tables, gather(self.index, rows))
        slots = torch.arange(kept.shape[1]).expand_as(kept)
        self.ran(block, inside, torch.full((len(kept), end - p), -1).scatter(1, kept, slots))
        places = rows.unsqueeze(-1).expand(-1, -1, stream.x.shape[2])
        self.stream = replace(stream, x=stream.x.scatter(1, places, block.mlp(inside.after)))
        self.entering.append((rows.shape[1], rows.shape[1]))

    def inside(self, cut: Reduction, block: Block, attended: Attended) -> Attended:
        """The attention of merged tokens, every token then with the context of the one it is in.

        q, k and v are plain means of their members': the projections are affine.
        """
        assert cut.decide is not None
        step = cut.decide(self.moment(cut, block, attended, self.past))
        self.margins += [Margin(cut.site, what, gap) for what, gap in step.margins]
        p, inner, batch = self.encoder.prefix, self.inner(), len(self.index)
        total, count = self.stream.x.shape[1], step.x.shape[1]
        places = torch.arange(total).expand(batch, -1)
        moved = places - (inner.stop - p - count) * (places >= inner.stop)
        owner = torch.cat([moved[:, :p], p + step.owner, moved[:, inner.stop :]], dim=1)
        members = torch.nn.functional.one_hot(owner).to(self.stream.x).transpose(1, 2)
        members = (members / members.sum(dim=2, keepdim=True)).unsqueeze(1)
        q, k, v = (members @ part for part in (attended.q, attended.k, attended.v))
        context = gather(attention(q, k, v, block.scale), owner)
        return replace(attended, after=block.attend(self.stream.x, context))

    def remember(self) -> None:
        """Each patch as it is, those that have left as they were."""
        index, x = self.index[:, self.inner()], self.stream.x[:, self.inner()]
        last = []
        for b, row in enumerate(index):
            here = row >= 0
            rows = self.last[b].clone()
            rows[row[here] - self.encoder.prefix] = x[b, here]
            last.append(rows)
        self.last = torch.stack(last)

    def back(self, moment: Moment) -> None:
        """All patches are there again, in order."""
        assert moment.cut.decide is not None
        self.remember()
        x, p, end = self.stream.x, self.encoder.prefix, self.inner().stop
        patches = moment.cut.decide(replace(moment, last=self.last))
        x = torch.cat([x[:, :p], patches, x[:, end:]], dim=1)
        self.stream = replace(self.stream, x=x, sizes=None)
        self.index = self.owner = torch.arange(self.total).expand(len(x), -1)
        self.size = torch.ones_like(x[..., 0])
        self.past, self.groups, self.left = (), self.encoder.groups, []

    def end(self) -> Result:
        given = self.restored and self.rule != "owner" and bool(self.left)
        if given:
            everyone = torch.arange(self.total).expand(len(self.owner), -1)
            self.stream = Stream(self.whole(), taps=self.stream.taps)
            self.index = self.owner = everyone
            self.size = torch.ones_like(self.stream.x[..., 0])
        if "output" not in self.at:
            self.stream = replace(self.stream, x=self.encoder.norm(self.stream.x))
        if self.restored and not given:
            self.stream = replace(self.stream, whole=gather(self.stream.x, self.owner))
        groups = self.groups
        if self.encoder.groups is not None and self.restored:
            # What joins the patches gets all of them back first.
            groups, everyone = self.encoder.groups, torch.arange(self.total)
            self.stream = Stream(self.stream.every(), taps=self.stream.taps)
            self.index = self.owner = everyone.expand(len(self.owner), -1)
            self.size = torch.ones_like(self.stream.x[..., 0])
        if groups is not None:
            step = _group_after_group(self.encoder, self.stream, groups.flatten())
            self.follow(step, taps=True)
        outputs = self.encoder.head(replace(self.stream, index=self.index))
        entering, margins = tuple(self.entering), tuple(self.margins)
        return Result(outputs, self.index, self.owner, self.size, entering, margins)

    def follow(self, step: Step, *, taps: bool) -> None:
        """Join prefix and suffix back on; compose where each original token went.

        taps: whether those go the same way.
        """
        x, prefix = self.stream.x, self.encoder.prefix
        end = x.shape[1] - self.encoder.suffix
        new = step.source < 0
        if taps and self.stream.taps and bool(new.any() or step.sizes is not None):
            raise ValueError("outputs of several depths have one kept set only without merging")

        def joined(whole: Tensor, middle: Tensor) -> Tensor:
            return torch.cat([whole[:, :prefix], middle, whole[:, end:]], dim=1)

        ones = torch.ones_like(self.size)
        sizes = None if step.sizes is None else joined(ones, step.sizes)
        before = self.index[:, prefix:end]
        came = gather(before, step.source.clamp(min=0)).masked_fill(new, -1)
        self.index = joined(self.index, came)
        places = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        shift = end - prefix - step.x.shape[1]
        moved = joined(torch.where(places < end, places, places - shift), prefix + step.owner)
        self.owner = gather(moved, self.owner)
        if step.sizes is not None:
            patch_size = step.sizes
        else:
            was = self.size[:, prefix:end]
            owned = torch.zeros_like(step.source, dtype=x.dtype).scatter_add_(1, step.owner, was)
            patch_size = torch.where(new, owned, gather(was, step.source.clamp(min=0)))
        self.size = joined(ones, patch_size)
        tapped = self.stream.taps
        if taps:
            tapped = tuple(joined(t, gather(t[:, prefix:end], step.source)) for t in tapped)
        self.stream = replace(self.stream, x=joined(x, step.x), sizes=sizes, taps=tapped)


def dense_attention(encoder: Encoder, image: Tensor) -> list[Attention]:
    """Streams after each block, with every token there."""
    walk = Walk(encoder, image, {}, restored=False)
    with torch.no_grad():
        for i, block in enumerate(encoder.blocks):
            walk.block(i, block)
    return [past.attention for past in walk.past]


#: Under what a margin goes whose unit is another than an attention probability.
_KEPT = {"norm": "length"}


def _score(
    encoder: Encoder, stream: Stream, cut: Reduction, block: Block, attended: Attended
) -> Tensor:
    """[B, T] of the patches."""
    p, end = encoder.prefix, stream.x.shape[1] - encoder.suffix
    if cut.score == "norm":
        return stream.x[:, p:end].norm(dim=-1)
    if block.apart > 1:
        q, k = (folded(part, block.apart, axis=2) for part in (attended.q, attended.k))
        bias = (
            None if attended.bias is None else diagonal(attended.bias, block.apart, len(stream.x))
        )
        return attn_score(q, k, block.scale, 0, bias).view(len(stream.x), -1)
    scoring = {"cls": cls_score, "attn": attn_score}[cut.score]
    return scoring(attended.q, attended.k, block.scale, p, attended.bias, encoder.suffix)


def _reduce(
    encoder: Encoder,
    stream: Stream,
    cut: Reduction,
    block: Block,
    attended: Attended,
    groups: Tensor | None,
) -> Step:
    p, end = encoder.prefix, stream.x.shape[1] - encoder.suffix
    total, parts = end - p, encoder.segments
    if parts > 1 and (cut.kind == "fuse" or cut.keep % parts):
        raise ValueError(f"{cut.site}: as many tokens leave each of {parts} segments")
    if groups is not None and (cut.kind != "topk" or cut.keep % (parts * groups.shape[1])):
        raise ValueError(f"{cut.site}: only whole groups of {groups.shape[1]} can be kept")
    patches = folded(stream.x[:, p:end], parts)
    sizes = None if stream.sizes is None else folded(stream.sizes[:, p:end], parts)
    keep = cut.keep // parts
    if cut.kind == "tome":
        if not total - total // 2 <= cut.keep < total:
            raise ValueError(f"{cut.site}: {total} tokens cannot be merged into {cut.keep}")
        keys = folded(attended.k[:, :, p:end], parts, axis=2)
        return unfolded(tome(patches, sizes, keys, keep), parts)
    if not 1 <= cut.keep < total:
        raise ValueError(f"{cut.site}: cannot keep {cut.keep} of {total} tokens")
    score = folded(_score(encoder, stream, cut, block, attended), parts)
    if groups is not None:
        own = groups[: len(groups) // parts]
        return unfolded(topk_groups(patches, sizes, score, keep, own), parts)
    step = {"topk": topk, "fuse": fuse}[cut.kind](patches, sizes, score, keep)
    return unfolded(step, parts)


def _group_after_group(encoder: Encoder, stream: Stream, order: Tensor) -> Step:
    """The patches put into this order [T]; nothing leaves."""
    patches = stream.x[:, encoder.prefix : stream.x.shape[1] - encoder.suffix]
    source = order.expand(len(patches), -1)
    owner = order.argsort().expand(len(patches), -1)
    return Step(gather(patches, source), None, source, owner, ())
