"""What a step over active codes is made of: errors of reconstructions, and codes with their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlsae.dictionaries.selection import Rows


@dataclass
class Errors:
    """Nested reconstructions of a batch, and the gradients of their squared errors.

    Attributes:
        G: `[B, groups, d]`, gradient towards whatever only prefixes from a group on contain.
        residual: `[B, d]`, what the whole reconstruction leaves, `xhat - y`.
        u: `[nnz]`, gradient towards every code.
        loss: the weighted sum of squared errors.
    """

    G: Tensor
    residual: Tensor
    u: Tensor
    loss: Tensor


@dataclass
class Entries:
    """Active codes with their gradients: entry `e` is code `val[e]` of latent `idx[e]` for token `token[e]`.

    Attributes:
        token, idx, row: int32 `[nnz]`; val, u: float32 `[nnz]`, the code and the gradient of the loss towards it.
        G: `[rows, d]`, gradients towards reconstructions; `row` says which one an entry's atom takes part in.
    """

    token: Tensor
    idx: Tensor
    val: Tensor
    u: Tensor
    row: Tensor
    G: Tensor

    @classmethod
    def of(cls, codes: Rows, errors: Errors, ends: Tensor) -> Entries:
        """Entries of codes whose nested reconstructions, groups of latents that end at `ends`, have these errors."""
        token = codes.numbers.int()
        group = torch.searchsorted(ends, codes.idx, right=True, out_int32=True)
        return cls(token, codes.idx, codes.val, errors.u, token * len(ends) + group, errors.G.flatten(0, 1))

    def extend(self, more: Entries) -> None:
        """Add entries with gradient rows of their own."""
        self.row = torch.cat([self.row, len(self.G) + more.row])
        for name in ("token", "idx", "val", "u", "G"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(more, name)]))
