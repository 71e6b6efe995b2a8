"""AbsTopK dictionaries: the k largest by magnitude, codes of both signs."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.topk import TopKDictionary


@DICTIONARIES.register("abs_topk")
class AbsTopKDictionary(TopKDictionary):
    """`z = TopK_|.|((x - b_dec) W_enc + b_enc)`: one signed latent where others need an antipodal pair.

    As in Sun et al. 2025 (arXiv 2506.15679, section 4). AuxK speaks through positive codes only, which revives a dead
    latent all the same.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: number of active latents a token, 1 to `n_latents`.
        seed: of the initial weights.

    Raises:
        ValueError: for an impossible `k`.

    Example:
        >>> sae = AbsTopKDictionary(d=4, n_latents=8, k=2)
        >>> (sae.encode(torch.randn(5, 4)) != 0).sum(-1).tolist()
        [2, 2, 2, 2, 2]
    """

    family = "abs_topk"
    signed = True

    def activate(self, pre: Tensor) -> Tensor:
        at = pre.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(pre).scatter(-1, at, pre.gather(-1, at))
