"""AuxK over sparse codes: the largest dead pre-activations, collected while blocks of them pass by."""

from __future__ import annotations

from torch import Tensor

from vlsae.dictionaries.selection import Collected, Rows
from vlsae.dictionaries.selection_tensors import best_of_columns


class DeadCodes:
    """Codes of dead latents that AuxK lets speak; to be called with every block of products.

    Args:
        latents: numbers of the dead; bias: their encoder biases.
        k: how many speak for a token, at most.
        n: tokens in all blocks.
    """

    def __init__(self, latents: Tensor, bias: Tensor, k: int, n: int):
        self.latents, self.bias, self.k = latents, bias, k
        self.found = Collected(n, n * min(k, len(latents)), bias.device)

    def __call__(self, rows: slice, P: Tensor) -> None:
        pre = P[:, self.latents].float() + self.bias
        mask = best_of_columns(pre, self.k) & (pre > 0)
        at, which = mask.nonzero(as_tuple=True)
        self.found.add(Rows.from_counts(mask.sum(1), self.latents[which].int(), pre[at, which]))

    @property
    def codes(self) -> Rows:
        """The k largest positive pre-activations of dead latents, of every token seen so far."""
        return self.found.rows
