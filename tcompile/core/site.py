"""The name of a place where tokens may leave, as a value: its kind and its block."""

from __future__ import annotations


class SiteName(str):
    """`attn:3` between attention and MLP, `block:3` after the MLP, `around:3` around the block,
    `inside:3` inside its attention, or `output` after the last block.

    It is its own text, so that schedules, messages and JSON hold it as people write it. A text that
    is not a site has a kind that no model has: who takes it looks it up, and refuses it by name.
    """

    __slots__ = ()

    @classmethod
    def of(cls, kind: str, block: int | None = None) -> SiteName:
        """The site of a kind at a block, which the output has none of."""
        return cls(kind if block is None else f"{kind}:{block}")

    @property
    def kind(self) -> str:
        """`attn`, `block`, `around`, `inside` or `output`."""
        return self.partition(":")[0]

    @property
    def block(self) -> int | None:
        """The number of the block; None for the output.

        Raises:
            ValueError: the text after the colon is not a number.
        """
        _, colon, number = self.partition(":")
        return int(number) if colon else None

    @property
    def returns(self) -> bool:
        """Tell whether the tokens that leave here come back behind the block or the attention."""
        return self.kind in ("around", "inside")

    def depth(self, blocks: int) -> tuple[int, int]:
        """(block, 0 between attention and MLP | 1 after the MLP | 2 at the output): the order in
        which sites are passed. The output belongs to the last of the blocks."""
        if self.block is None:
            return blocks - 1, 2
        return self.block, int(self.kind == "block")
