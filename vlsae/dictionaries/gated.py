"""Gated dictionaries (Rajamanoharan et al. 2024): which latents fire is decided apart from how strongly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.jumprelu import JumpReLUDictionary


@DICTIONARIES.register("gated")
class GatedDictionary(Dictionary):
    """`z = 1[gate > 0] ReLU(magnitude)` with `magnitude = exp(r) (x - b_dec) W_enc + b_mag` (arXiv 2404.16014).

    `gate = (x - b_dec) W_enc + b_enc` is what `pre` returns, and what the penalty falls on; magnitudes are therefore
    not shrunk. The two share their directions: `2 n` more parameters than a ReLU dictionary.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        seed: of the initial weights.

    Attributes:
        r_mag: `[n_latents]`, log of how much longer the magnitudes' directions are; b_mag: `[n_latents]`.

    Example:
        >>> sae = GatedDictionary(d=4, n_latents=8)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(sae.encode(x), sae.to_jumprelu().encode(x), atol=1e-6)
        True
    """

    family = "gated"
    objectives = ("reconstruction", "gate")

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        self.r_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(self.n_latents))

    def codes(self, gate: Tensor) -> Tensor:
        """Codes of gate pre-activations `[..., n_latents]`."""
        magnitude = torch.exp(self.r_mag) * (gate - self.b_enc) + self.b_mag
        return (gate > 0) * torch.relu(magnitude)

    def activate(self, pre: Tensor) -> Tensor:
        return self.codes(pre)

    def trace(self, x: Tensor) -> Trace:
        """The gate's step has no gradient, and the magnitudes leave the gate's bias alone."""
        linear = (x - self.b_dec) @ self.W_enc
        gate = linear + self.b_enc
        z = (gate > 0) * torch.relu(torch.exp(self.r_mag) * linear + self.b_mag)
        return Trace(gate, z, self._decode(z))

    @torch.no_grad()
    def to_jumprelu(self) -> JumpReLUDictionary:
        """The same function as a JumpReLU dictionary: `threshold = max(0, b_mag - exp(r_mag) b_enc)` (appendix E).

        The gate is open where the magnitude exceeds `b_mag - exp(r_mag) b_enc`; where that is negative the ReLU is
        what cuts.
        """
        other = JumpReLUDictionary(self.d, self.n_latents).to(self.W_dec)
        stretch = torch.exp(self.r_mag)
        other.W_enc.copy_(self.W_enc * stretch)
        other.b_enc.copy_(self.b_mag)
        other.threshold.copy_(torch.relu(self.b_mag - stretch * self.b_enc))
        other.W_dec.copy_(self.W_dec)
        other.b_dec.copy_(self.b_dec)
        other.transform, other.metadata = self.transform, dict(self.metadata)
        return other.requires_grad_(False)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        self.b_mag.div_(scale)
