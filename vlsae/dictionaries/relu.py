"""ReLU dictionaries, trained with an L1 penalty: Patch-SAE (Lim et al. 2025) and the standard SAE."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary


@DICTIONARIES.register("relu")
class ReLUDictionary(Dictionary):
    """`z = max(0, (x - b_dec) W_enc + b_enc)` (PatchSAE, arXiv 2412.05276, section 3).

    Example:
        >>> sae = ReLUDictionary(d=4, n_latents=8)
        >>> sae.encode(torch.randn(2, 4)).shape
        torch.Size([2, 8])
    """

    family = "relu"
    tied_init = False

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)
