"""Tied dictionaries (Cunningham et al. 2023): one matrix encodes and decodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary


@DICTIONARIES.register("tied")
class TiedDictionary(Dictionary):
    """`z = ReLU(x A^T + b_enc)`, `xhat = z A`, with `A` the rows of one matrix at unit norm (arXiv 2309.08600, eq. 1-3).

    There is no decoder bias; centre the data by `input_transform="centre"` where that is wanted.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        seed: of the initial weights.

    Attributes:
        rows: `[n_latents, d]`, of any length; W_dec: the same at unit norm; W_enc: its transpose.

    Example:
        >>> sae = TiedDictionary(d=4, n_latents=8)
        >>> torch.equal(sae.W_enc, sae.W_dec.T)
        True
    """

    family = "tied"
    objectives = ("reconstruction", "l1")

    def _init_weights(self, generator: torch.Generator) -> None:
        self.rows = nn.Parameter(torch.randn(self.n_latents, self.d, generator=generator))
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.register_buffer("b_dec", torch.zeros(self.d))

    @property
    def W_dec(self) -> Tensor:
        return F.normalize(self.rows, dim=1)

    @property
    def W_enc(self) -> Tensor:
        return self.W_dec.T

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def constrain_gradient(self) -> None:
        """Nothing: the normalisation in the forward pass takes the radial part out."""

    def normalise_atoms(self) -> None:
        """Give every row unit norm; the function stays."""
        with torch.no_grad():
            self.rows.copy_(self.W_dec)
