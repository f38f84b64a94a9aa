"""Methods: published compositions of score × reducer × schedule, as data and a few lines each.

Adding one is adding an entry to `METHODS`; nothing else changes (DESIGN 5.3).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any

from tcompile.errors import UsageError
from tcompile.planning.schedule import Reduction, Schedule, Shape, Spec


@dataclass(frozen=True)
class Room:
    """Where a model lets tokens leave.

    Attributes:
        legal: names of the sites where they may.
        groups: site → tokens that must leave together, where that is more than one.
        windows: whether some blocks attend within windows.
        parallel: blocks without a point between attention and MLP.
        unscored: sites whose attention sees windows only, so that it cannot score.
    """

    legal: frozenset[str]
    groups: Mapping[str, int] = field(default_factory=dict)
    windows: bool = False
    parallel: frozenset[int] = frozenset()
    unscored: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Context:
    """What a method is composed for.

    Attributes:
        shape: token counts and number of blocks.
        has_cls: whether the model reads its first prefix token as CLS.
        keep: fraction of patch tokens that leave the encoder, or None where the method's own
            parameters say.
        room: where the model lets tokens leave; None: everywhere.
    """

    shape: Shape
    has_cls: bool
    keep: Fraction | None
    room: Room | None = None

    def site(self, block: int) -> str:
        """Between attention and MLP of a block; after it where nothing lies between."""
        parallel = self.room is not None and block in self.room.parallel
        return f"block:{block}" if parallel else f"attn:{block}"

    def first(self, kind: str, block: int) -> int:
        """The first block from `block` on with a legal site of the kind; `block` if none has."""
        legal = [i for i in self.legal(kind) if i >= block]
        scored = [i for i in legal if self.room is None or f"{kind}:{i}" not in self.room.unscored]
        return next(iter(scored + legal), block)

    def score_at(self, site: str) -> Spec:
        """`score`, or the token's length where the attention sees windows only."""
        blind = self.room is not None and site in self.room.unscored
        return Spec("norm") if blind else self.score

    def legal(self, kind: str) -> list[int]:
        """The blocks whose site of the kind is legal."""
        blocks = range(self.shape.blocks)
        return [i for i in blocks if self.room is None or f"{kind}:{i}" in self.room.legal]

    def final_at(self, site: str) -> int:
        """Non-prefix tokens that leave a site: ceil(keep · T), or the groups' ceil(keep · G)."""
        size = self.room.groups.get(site, 1) if self.room else 1
        assert self.keep is not None
        return ceil(self.keep * (self.shape.patches // size)) * size

    @property
    def final(self) -> int:
        """Non-prefix tokens that leave: ceil(keep · T), exact."""
        assert self.keep is not None
        return ceil(self.keep * self.shape.patches)

    @property
    def score(self) -> Spec:
        """The CLS row where there is a CLS, else attention received from strided queries."""
        return Spec("cls") if self.has_cls else Spec("attn")


Compose = Callable[[Context, Mapping[str, Any]], list[Reduction]]


@dataclass(frozen=True)
class Method:
    """A preset.

    Attributes:
        name: as in `--method`.
        summary: one line.
        formula: the mathematics, for `tcompile methods`.
        reference: where it was published.
        parameters: name → (type, default, meaning); a default of None means not set.
        budget: names of the parameters that set the budget by themselves, without `--keep`.
        compose: (context, parameters) → reductions.
    """

    name: str
    summary: str
    formula: str
    reference: str
    parameters: Mapping[str, tuple[type, Any, str]]
    budget: tuple[str, ...]
    compose: Compose

    def to_json(self) -> dict[str, Any]:
        parameters = {
            k: {"type": t.__name__, "default": d, "meaning": m}
            for k, (t, d, m) in self.parameters.items()
        }
        return {
            "name": self.name, "summary": self.summary, "formula": self.formula,
            "reference": self.reference, "parameters": parameters,
            "sets_budget": list(self.budget),
        }  # fmt: skip


def _site(kind: Any, block: int, blocks: int) -> str:
    if kind not in ("attn", "block", "output"):
        raise UsageError(f"site '{kind}' is not attn, block or output", where="--method")
    if kind != "output" and not 0 <= block < blocks:
        raise UsageError(f"block {block} does not exist: 0 to {blocks - 1}", where="--method")
    return "output" if kind == "output" else f"{kind}:{block}"


def _topk(context: Context, parameters: Mapping[str, Any]) -> list[Reduction]:
    blocks, kind = context.shape.blocks, parameters["site"]
    block = parameters["block"]
    if block is None:
        if kind == "attn" and context.site(blocks // 4).startswith("block"):
            kind = "block"
        block = context.first(kind, blocks // 4)
    site = _site(kind, block, blocks)
    final = context.final_at(site)
    if final == context.shape.patches:
        return []  # so few tokens that the fraction rounds up to all of them
    return [Reduction(site, context.score_at(site), Spec("topk"), final)]


def _bypass(context: Context, parameters: Mapping[str, Any]) -> list[Reduction]:
    windows = context.room is not None and context.room.windows
    first = parameters["first"]
    if first is None:
        first = 0 if windows else context.shape.blocks // 4
    blocks = [i for i in context.legal("around") if i >= first]
    if not blocks:
        raise UsageError("no block of this model can be bypassed", where="--method",
                         hint="`tcompile inspect` says why")  # fmt: skip
    if context.final == context.shape.patches:
        return []
    # Scores of a windowed model's global blocks would need its position bias for every pair.
    sites = [f"around:{i}" for i in blocks]
    scores = [Spec("norm") if windows else context.score_at(s) for s in sites]
    keep = [context.final_at(s) for s in sites]
    return [
        Reduction(site, score, Spec("bypass"), k)
        for site, score, k in zip(sites, scores, keep, strict=True)
        if k < context.shape.patches
    ]


def _evit(context: Context, parameters: Mapping[str, Any]) -> list[Reduction]:
    blocks, total = context.shape.blocks, context.shape.patches
    stages = sorted({blocks // 4, blocks // 2, 3 * blocks // 4})
    rate: Fraction | None = parameters["rate"]
    found: list[Reduction] = []
    count = total
    for i, block in enumerate(stages, 1):
        if rate is not None:
            # K = ceil(rate · tokens), and one fused token after them.
            kept = ceil(rate * count)
            leave = kept + 1 if kept < count else count
        else:
            leave = _root_ceil(total, context.keep or Fraction(1), i, len(stages))
        if leave < count:
            found.append(Reduction(context.site(block), context.score, Spec("fuse"), leave))
            count = leave
    return found


def _root_ceil(total: int, keep: Fraction, i: int, n: int) -> int:
    """ceil(total · keep^(i/n)), exact: the least m with m^n ≥ total^n · keep^i."""
    goal = Fraction(total) ** n * keep**i
    m = int(total * float(keep) ** (i / n))
    while Fraction(m) ** n >= goal and m > 0:
        m -= 1
    while Fraction(m) ** n < goal:
        m += 1
    return m


def _tome(context: Context, parameters: Mapping[str, Any]) -> list[Reduction]:
    blocks, total = context.shape.blocks, context.shape.patches
    spec = Spec("merge", {} if parameters["prop_attn"] else {"prop_attn": False})
    found: list[Reduction] = []
    count = total
    for block in range(blocks):
        if parameters["r"] is not None:
            goal = count - parameters["r"]
        else:
            share = Fraction((block + 1) * (total - context.final), blocks)
            goal = total - int(share + Fraction(1, 2))
        # Only half of the tokens can find a partner in one step.
        leave = max(goal, count - count // 2)
        if leave < count:
            found.append(Reduction(context.site(block), None, spec, leave))
            count = leave
    if context.keep is not None and parameters["r"] is None and count > context.final:
        raise UsageError(
            f"tome can merge {total} tokens down to {count} at best, not {context.final}, "
            f"in {blocks} blocks",
            where="--keep",
        )
    return found


#: The registry.
METHODS: tuple[Method, ...] = (
    Method(
        "topk",
        "keep the tokens that matter most, drop the rest, once",
        "score_j = mean_h softmax(q_cls·K^T/sqrt d)[j]; without CLS, the mean over ceil(sqrt T) "
        "evenly strided patch queries; keep the K best in their order",
        "Haurum et al., Which Tokens to Use?, ICCVW 2023 (top-k baseline)",
        {
            "block": (
                int,
                None,
                "block after whose attention tokens leave; default the first legal from L//4 on",
            ),
            "site": (str, "attn", "attn (before the MLP), block (after it) or output"),
        },
        (),
        _topk,
    ),
    Method(
        "evit",
        "keep the most attended tokens, fuse the rest into one, at three depths",
        "c_j = mean_h A[h,cls,j]; keep K = ceil(rate·T) per stage, then one token sum_dropped c_j "
        "x_j (not renormalised); before the MLP of blocks L//4, L//2, 3L//4",
        "Liang et al., Not All Patches are What You Need, ICLR 2022",
        {"rate": (Fraction, None, "tokens kept at each of the three stages (paper: 0.5 to 0.9)")},
        ("rate",),
        _evit,
    ),
    Method(
        "tome",
        "merge similar tokens in every block",
        "metric = mean_h K; even positions match odd ones by cosine, the r best pairs merge into "
        "their size-weighted mean; later logits += log size; pooling weighs by size",
        "Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023",
        {
            "r": (int, None, "tokens merged per block (paper: 8 to 16 for ViT-B)"),
            "prop_attn": (bool, True, "proportional attention (paper: off for MAE weights)"),
        },
        ("r",),
        _tome,
    ),
    Method(
        "bypass",
        "let the tokens that matter least skip blocks; the map stays whole",
        "around each block: x_S' = block(x_S), the rest unchanged, S the K = ceil(keep·T) best by "
        "what the block's own attention pays them (topk's score over all tokens), or by length "
        "‖x_j‖ in models with windows, whose global blocks alone are bypassed",
        "Xu et al., No Token Left Behind (IdleViT), AJCAI 2023; Liu et al., Revisiting Token "
        "Pruning for Object Detection (SViT), WACV 2024",
        {"first": (int, None, "first block that may be bypassed; default L//4, with windows 0")},
        (),
        _bypass,
    ),
)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    for method in METHODS:
        if method.name == name:
            return method
    names = [m.name for m in METHODS]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise UsageError(f"unknown method '{name}'", where="--method", hint=hint)


def parse_method(text: str) -> tuple[Method, dict[str, Any]]:
    """`evit:rate=0.7` → the method and all its parameters.

    Raises:
        UsageError: unknown method or parameter, or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    method = find_method(name)
    values: dict[str, Any] = {k: d for k, (_, d, _) in method.parameters.items()}
    for item in filter(None, rest.split(",")):
        key, equals, raw = item.partition("=")
        if key not in method.parameters or not equals:
            known = ", ".join(method.parameters)
            raise UsageError(f"'{item}' is not a parameter of {name}",
                             where="--method", hint=f"it has: {known}")  # fmt: skip
        values[key] = _convert(method.parameters[key][0], key, raw)
    return method, values


def _convert(kind: type, key: str, raw: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[raw.lower()]
        converted = _fraction(raw) if kind is Fraction else kind(raw)
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise UsageError(f"{key}={raw} is no {kind.__name__.lower()}", where="--method") from error
    if kind is Fraction and not 0 < converted <= 1:
        raise UsageError(f"{key}={raw} is outside (0, 1]", where="--method")
    if kind is int and converted < 0:
        raise UsageError(f"{key}={raw} is negative", where="--method")
    return converted


def _fraction(text: str) -> Fraction:
    """The exact number; ValueError also for exponents that would take minutes to write out."""
    _, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-0")) > 3:
        raise ValueError(f"'{text}' is beyond any use")
    return Fraction(text)


def parse_keep(keep: float | str | Fraction) -> Fraction:
    """The keep ratio as the exact decimal that was typed.

    Raises:
        UsageError: not a number in (0, 1].
    """
    try:
        ratio = keep if isinstance(keep, Fraction) else _fraction(str(keep))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"'{keep}' is no number", where="--keep") from error
    if not 0 < ratio <= 1:
        raise UsageError(
            f"{keep} is outside (0, 1]",
            where="--keep",
            hint="it is the fraction of patch tokens that leave the encoder",
        )
    return ratio


def compose(
    text: str,
    shape: Shape,
    has_cls: bool,
    keep: float | str | Fraction | None,
    room: Room | None = None,
) -> Schedule:
    """The schedule of a method on a model.

    Args:
        room: where the model lets tokens leave; None: everywhere.

    Raises:
        UsageError: no budget given, two budgets given, or parameters that do not fit the model.
    """
    method, values = parse_method(text)
    own = [k for k in method.budget if values[k] is not None]
    if keep is None and not own:
        how = "--keep R" + "".join(f" or --method {method.name}:{k}=…" for k in method.budget)
        raise UsageError("no budget given", where="--keep", hint=f"say {how}")
    if keep is not None and own:
        raise UsageError(
            f"--keep and {method.name}:{own[0]} both set the budget",
            where="--keep",
            hint="give one of them",
        )
    ratio = None if keep is None else parse_keep(keep)
    if ratio == 1:
        return Schedule(text, shape, ())
    context = Context(shape, has_cls, ratio, room)
    return Schedule(text, shape, _in_steps(method.compose(context, values), room, shape.patches))


def _in_steps(reductions: list[Reduction], room: Room | None, count: int) -> tuple[Reduction, ...]:
    """Counts rounded up to what may leave together; reductions that then take nothing are gone."""
    found: list[Reduction] = []
    for step in reductions:
        size = room.groups.get(step.site, 1) if room else 1
        keep = ceil(Fraction(step.keep, size)) * size
        if keep < count or step.site.startswith("around"):
            found.append(replace(step, keep=keep))
            count = count if step.site.startswith("around") else keep
    return tuple(found)
