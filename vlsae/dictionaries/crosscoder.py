"""Crosscoders: one code for all layers, with an encoder and a decoder each (Lindsey et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES
from vlsae.dictionaries.relu import ReLUDictionary


@DICTIONARIES.register("crosscoder")
class Crosscoder(ReLUDictionary):
    """`z = ReLU(sum_l (x_l - b_l) W_enc_l + b_enc)`, `xhat_l = z W_dec_l + b_l`, for layers side by side, `x [B, L d]`.

    Trained with `l1 * mean_t sum_i z_ti sum_l ||W_dec_l,i||` ("Sparse Crosscoders", Transformer Circuits 2024), which
    charges a latent for every layer that it writes to; atoms are free to have any norm, 0 at some layers.

    Args:
        d: width of all layers together.
        n_latents: number of atoms.
        layers: L; divides `d`.
        seed: of the initial weights.

    Raises:
        ValueError: where `layers` does not divide `d`.

    Example:
        >>> Crosscoder(d=12, n_latents=8, layers=3).layer_norms().shape
        torch.Size([8, 3])
    """

    family = "crosscoder"
    objectives = ("reconstruction", "decoder_norms")
    unit_atoms = False

    def __init__(self, d: int, n_latents: int, *, layers: int = 1, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        if layers < 1 or d % layers:
            raise ValueError(f"{layers} layers do not divide the width {d}; give x [B, L d] with L = layers.")
        self.layers = layers

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "layers": self.layers}

    def layer_norms(self) -> Tensor:
        """`||W_dec_l,i||`, `[n_latents, L]`: where each latent writes; with a gradient in training."""
        return self.W_dec.unflatten(1, (self.layers, -1)).norm(dim=2)

    @torch.no_grad()
    def layer_share(self) -> Tensor:
        """The share of each layer in a latent's decoder norms, `[n_latents, L]`."""
        norms = self.layer_norms()
        return norms / norms.sum(1, keepdim=True).clamp_min(1e-12)
