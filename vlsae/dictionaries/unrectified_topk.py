"""TopK dictionaries without a ReLU, as saev writes them: the k largest pre-activations, negative ones too."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.topk import TopKDictionary


@DICTIONARIES.register("unrectified_topk")
class UnrectifiedTopKDictionary(TopKDictionary):
    """`z = TopK((x - b_dec) W_enc + b_enc)`: as `topk` where at least `k` pre-activations are positive, else some codes are
    negative (Gao et al. 2024, arXiv 2406.04093, equation 2, without the ReLU).

    Made to be read from saev, whose TopK leaves the ReLU out; it can be trained, but `topk` is what one wants then.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: number of active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Raises:
        ValueError: for an impossible `k`.

    Example:
        >>> sae = UnrectifiedTopKDictionary(d=1, n_latents=2, k=2)
        >>> sae.activate(torch.tensor([[3.0, -2.0]])).tolist()
        [[3.0, -2.0]]
    """

    family = "unrectified_topk"
    signed = True
    can_pick = False  # selection takes the largest of positive ones, or the largest by size

    def activate(self, pre: Tensor) -> Tensor:
        values, at = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, at, values)
