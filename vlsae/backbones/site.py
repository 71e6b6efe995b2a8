"""A place inside a model where activations are read or edited, as a name."""

from __future__ import annotations

from dataclasses import dataclass

TOWERS = ("vision", "text")
STREAMS = ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out", "pooled")


@dataclass(frozen=True)
class Site:
    """Tower, block and stream, written `vision.-2.resid_post`; `vision.pooled` has no block.

    Args:
        tower: "vision" or "text".
        block: number of the block, negative from the end; None for "pooled" (the embedding before normalisation).
        stream: "resid_pre" and "resid_post" (the residual stream before and after the block), "attn_out", "mlp_in",
            "mlp_out", or "pooled".

    Example:
        >>> Site.parse("vision.-2.resid_post")
        Site(tower='vision', block=-2, stream='resid_post')
        >>> str(Site.parse("vision.-2.resid_post").resolve(12))
        'vision.10.resid_post'
    """

    tower: str
    block: int | None
    stream: str

    def __post_init__(self) -> None:
        if self.tower not in TOWERS or self.stream not in STREAMS or (self.block is None) != (self.stream == "pooled"):
            raise ValueError(
                f"Site {self!s} does not exist; write TOWER.BLOCK.STREAM such as vision.-2.resid_post, with TOWER one "
                f"of {', '.join(TOWERS)} and STREAM one of {', '.join(STREAMS)}, or TOWER.pooled."
            )

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.tower, self.block, self.stream) if part is not None)

    @property
    def is_whole(self) -> bool:
        """Whether all that later blocks of the vision tower see passes here, so that the batch may grow."""
        return self.tower == "vision" and self.stream in ("resid_pre", "resid_post", "pooled")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read the written form; a Site passes through."""
        if isinstance(text, Site):
            return text
        parts = text.split(".")
        try:
            if len(parts) == 2:
                return cls(parts[0], None, parts[1])
            tower, block, stream = parts
            return cls(tower, int(block), stream)
        except ValueError as error:
            if str(error).startswith("Site "):
                raise
            raise ValueError(
                f"{text!r} is not a site; write TOWER.BLOCK.STREAM such as vision.-2.resid_post, or vision.pooled."
            ) from error

    def resolve(self, n_blocks: int) -> Site:
        """The same site with a non-negative block number, in a tower of `n_blocks`."""
        if self.block is None:
            return self
        if not -n_blocks <= self.block < n_blocks:
            raise ValueError(f"Site {self} needs block {self.block}, but this {self.tower} tower has {n_blocks}.")
        return Site(self.tower, self.block % n_blocks, self.stream)
