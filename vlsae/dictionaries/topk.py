"""TopK dictionaries (Gao et al. 2024, arXiv 2406.04093): the sparsity is chosen, not tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.selection import Products, Rows, top_k


@DICTIONARIES.register("topk")
class TopKDictionary(Dictionary):
    """`z = ReLU(TopK((x - b_dec) W_enc + b_enc))`: at most `k` positive codes a vector (equation 2 of the paper).

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: largest number of active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Example:
        >>> sae = TopKDictionary(d=4, n_latents=8, k=2)
        >>> bool(((sae.encode(torch.randn(5, 4)) > 0).sum(-1) <= 2).all())
        True
    """

    family = "topk"

    def __init__(self, d: int, n_latents: int, *, k: int, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        self.k = k

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    can_pick = True

    def pick(self, products: Products) -> Rows:
        return top_k(products, self.k, signed=self.signed)

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, torch.relu(values))
