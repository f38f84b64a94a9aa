"""The token-reduction methods, in plain PyTorch, from their papers.

* top-k by attention of the class token (the score of EViT, Liang et al., ICLR 2022,
  arXiv:2202.07800), or without a class token by the attention that evenly strided patches give;
* EViT: the same selection, and what leaves becomes one token, its attention-weighted sum, not
  renormalised.  On purpose unlike the paper: ascending order, registers never scored;
* ToMe (Bolya et al., ICLR 2023, arXiv:2210.09461): bipartite soft matching on the mean key,
  size-weighted means, proportional attention.  The prefix is stripped before matching.

Every function works in the dtype it is given, float64 included.  The decisions carry their
margins, so that a test can tell an error from a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.oracles.choices import Step, attn_score, cls_score, fuse, tome, topk, topk_groups
from tests.oracles.stream import Encoder, Output, Stream, attention, gather


@dataclass(frozen=True)
class Reduction:
    """site: `attn:3` (after that block's attention), `block:3` (after its MLP) or `output` (after
    the last block and the norm that follows it; scores are the last block's).
    kind: topk, fuse or tome.  score: cls or attn (not for tome).  keep: tokens other than the
    prefix that leave the site, the fused one included.  proportional: ToMe's proportional attention
    from here on."""

    site: str
    kind: str
    keep: int
    score: str = "cls"
    proportional: bool = True


@dataclass(frozen=True)
class Margin:
    """How clear the closest decision of one reduction was, for each image: gap [B].

    what: `kept` or `merged`, the last that was against the first that was not, in that score's unit
    (attention probability, cosine); `target` or `owner`, the nearest token against the second
    nearest, as cosines.
    """

    site: str
    what: str
    gap: Tensor


@dataclass(frozen=True)
class Result:
    """outputs: as the head gives them, tokens reduced.  index [B, K], owner [B, N], size [B, K]:
    over all tokens, prefix included.  entering: tokens entering (attention, MLP) of each block."""

    outputs: tuple[Output, ...]
    index: Tensor
    owner: Tensor
    size: Tensor
    entering: tuple[tuple[int, int], ...]
    margins: tuple[Margin, ...]

    def restored(self, output: Output) -> Tensor:
        """An output with a token axis, brought back to one row for every original token.

        The output's first row is stream position `first`; rows before it have no owner in it, and
        the prefix owns itself, so owners are shifted by `first` as well.
        """
        if output.first is None:
            return output.value
        return gather(output.value, output.part(self.owner) - output.first)


def run(encoder: Encoder, image: Tensor, reductions: Sequence[Reduction]) -> Result:
    """The encoder on image [B, 3, H, W] with tokens leaving at each site of `reductions`.

    Raises ValueError for a site that does not exist or a keep that the kind cannot reach.
    """
    last = len(encoder.blocks) - 1
    at = {r.site: r for r in reductions}
    sites = {f"{half}:{i}" for i in range(last + 1) for half in ("attn", "block")} | {"output"}
    if not at.keys() <= sites or len(at) != len(reductions):
        raise ValueError(f"sites {sorted(at)} are not among those of {last + 1} blocks, or repeat")

    x = encoder.embed(image)
    batch, total, _ = x.shape
    stream = Stream(x)
    everyone = torch.arange(total).expand(batch, -1)
    index, owner, size = everyone, everyone, torch.ones(batch, total, dtype=x.dtype)
    mask = None if encoder.mask is None else encoder.mask(image)
    groups = encoder.groups
    margins: list[Margin] = []
    entering: list[tuple[int, int]] = []
    for i, block in enumerate(encoder.blocks):
        arriving = stream.x.shape[1]
        if block.late is not None:
            stream = replace(stream, x=stream.x + _rows(block.late, index))
        tables = [t for t in (mask, block.bias) if t is not None]
        bias = _bias(tables, stream, index)
        q, k, v = block.heads(stream.x, index)
        after = block.attend(stream.x, attention(q, k, v, block.scale, bias))
        stream = replace(stream, x=after)
        for half in ("attn", "block", "output"):
            site = half if half == "output" else f"{half}:{i}"
            if half == "block":
                entering.append((arriving, stream.x.shape[1]))
                stream = replace(stream, x=block.mlp(stream.x))
            elif half == "output":
                if i < last:
                    break
                stream = replace(stream, x=encoder.norm(stream.x))
            if site not in at:
                continue
            if stream.x.shape[1] != arriving:
                raise ValueError(f"{site}: the attention of block {i} had other tokens")
            step = _reduce(encoder, stream, at[site], q, k, block.scale, bias, groups)
            margins += [Margin(site, what, gap) for what, gap in step.margins]
            if at[site].kind == "tome":
                stream = replace(stream, proportional=at[site].proportional)
            stream, index, owner, size = _apply(encoder, stream, step, index, owner, size)
            if groups is not None:
                groups = torch.arange(at[site].keep).view(-1, groups.shape[1])
    if groups is not None:
        step = _group_after_group(encoder, stream, groups.flatten())
        stream, index, owner, size = _apply(encoder, stream, step, index, owner, size)
    return Result(encoder.head(stream), index, owner, size, tuple(entering), tuple(margins))


def _bias(tables: Sequence[Tensor], stream: Stream, index: Tensor) -> Tensor | None:
    """Everything that is added to the logits: the tables at the tokens that are left, and the sizes
    of the keys."""
    found = stream.key_bias()
    for table in tables:
        own = _at(table, index)
        found = own if found is None else found + own
    return found


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """[N, C] at the tokens index [B, K]. Raises ValueError when one was made of others."""
    if bool((index < 0).any()):
        raise ValueError("a token that was made of others has no position")
    return table[index]


def _at(table: Tensor, index: Tensor) -> Tensor:
    """[1 or B, 1 or H, 1 or N, N] (or without the batch) -> the same with the tokens index [B, K].

    Raises ValueError when one of them was made of others.
    """
    if bool((index < 0).any()):
        raise ValueError("a token that was made of others has no row in the bias")
    table = table if table.ndim == 4 else table.unsqueeze(0)
    table = table.expand(len(index), -1, -1, -1)
    places = index[:, None, None, :].expand(-1, table.shape[1], table.shape[2], -1)
    table = table.gather(3, places)
    if table.shape[2] == 1:
        return table
    return table.gather(2, index[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))


def _reduce(
    encoder: Encoder,
    stream: Stream,
    cut: Reduction,
    q: Tensor,
    k: Tensor,
    scale: float,
    bias: Tensor | None,
    groups: Tensor | None,
) -> Step:
    p, end = encoder.prefix, stream.x.shape[1] - encoder.suffix
    patches = stream.x[:, p:end]
    sizes = None if stream.sizes is None else stream.sizes[:, p:end]
    total = patches.shape[1]
    if groups is not None and (cut.kind != "topk" or cut.keep % groups.shape[1]):
        raise ValueError(f"{cut.site}: only whole groups of {groups.shape[1]} can be kept")
    if cut.kind == "tome":
        if not total - total // 2 <= cut.keep < total:
            raise ValueError(f"{cut.site}: {total} tokens cannot be merged into {cut.keep}")
        return tome(patches, sizes, k[:, :, p:end], cut.keep)
    if not 1 <= cut.keep < total:
        raise ValueError(f"{cut.site}: cannot keep {cut.keep} of {total} tokens")
    scoring = {"cls": cls_score, "attn": attn_score}[cut.score]
    score = scoring(q, k, scale, p, bias, encoder.suffix)
    if groups is not None:
        return topk_groups(patches, sizes, score, cut.keep, groups)
    return {"topk": topk, "fuse": fuse}[cut.kind](patches, sizes, score, cut.keep)


def _group_after_group(encoder: Encoder, stream: Stream, order: Tensor) -> Step:
    """The patches put into this order [T]; nothing leaves."""
    patches = stream.x[:, encoder.prefix : stream.x.shape[1] - encoder.suffix]
    source = order.expand(len(patches), -1)
    owner = order.argsort().expand(len(patches), -1)
    return Step(gather(patches, source), None, source, owner, ())


def _apply(
    encoder: Encoder, stream: Stream, step: Step, index: Tensor, owner: Tensor, size: Tensor
) -> tuple[Stream, Tensor, Tensor, Tensor]:
    """Join prefix and suffix back on; compose where each original token went."""
    prefix, end = encoder.prefix, stream.x.shape[1] - encoder.suffix

    def joined(whole: Tensor, middle: Tensor) -> Tensor:
        return torch.cat([whole[:, :prefix], middle, whole[:, end:]], dim=1)

    x = joined(stream.x, step.x)
    ones = torch.ones_like(size)
    sizes = None if step.sizes is None else joined(ones, step.sizes)
    new = step.source < 0
    before = index[:, prefix:end]
    came = gather(before, step.source.clamp(min=0)).masked_fill(new, -1)
    index = joined(index, came)
    places = torch.arange(stream.x.shape[1]).expand(x.shape[0], -1)
    shift = end - prefix - step.x.shape[1]
    owner = gather(
        joined(torch.where(places < end, places, places - shift), prefix + step.owner), owner
    )
    if step.sizes is not None:
        patch_size = step.sizes
    else:
        was = size[:, prefix:end]
        owned = torch.zeros_like(step.source, dtype=x.dtype).scatter_add_(1, step.owner, was)
        patch_size = torch.where(new, owned, gather(was, step.source.clamp(min=0)))
    return replace(stream, x=x, sizes=sizes), index, owner, joined(ones, patch_size)
