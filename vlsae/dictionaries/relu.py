"""ReLU dictionaries, trained with an L1 penalty: Patch-SAE (Lim et al. 2025) and the standard SAE."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.selection import Products, Rows, positive


@DICTIONARIES.register("relu")
class ReLUDictionary(Dictionary):
    """`z = max(0, (x - b_dec) W_enc + b_enc)` (PatchSAE, arXiv 2412.05276, section 3).

    Example:
        >>> sae = ReLUDictionary(d=4, n_latents=8)
        >>> sae.encode(torch.randn(2, 4)).shape
        torch.Size([2, 8])
    """

    family = "relu"
    objectives = ("reconstruction", "l1")
    dead_policy = "ghost"

    def _init_weights(self, generator: torch.Generator) -> None:
        """Both matrices Kaiming-uniform and independent, as in PatchSAE's released code; atoms then made unit."""
        seed = generator.initial_seed()
        super()._init_weights(generator)
        generator.manual_seed(seed)
        with torch.no_grad():
            self.W_enc.uniform_(-1, 1, generator=generator).mul_((6 / self.n_latents) ** 0.5)
            self.W_dec.uniform_(-1, 1, generator=generator)
        self.normalise_atoms()

    can_pick = True

    def pick(self, products: Products) -> Rows:
        return positive(products)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)
