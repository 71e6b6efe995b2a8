"""Dictionaries that encode by distance: a latent fires by how near a vector's direction is to its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary

NEAREST = 1e-12  # least squared distance, where the root still has a gradient


@DICTIONARIES.register("distance")
class DistanceDictionary(Dictionary):
    """`z = TopK(2 - ||x/||x|| - w_i/||w_i|| ||)`, `xhat = z W_dec + b_dec`: VL-SAE with one decoder.

    A pre-activation lies in 0 to 2, is `2 - sqrt(2)` for orthogonal directions, and changes at most as much as the
    input's unit vector does. It does not know the input's norm, so that the decoder can only give an average one;
    `input_transform="unit"` takes the norm out and gives it back. Weights start as the released code's: uniform.
    Ties are broken by position, where the released code drops them. arXiv 2510.21323.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Attributes:
        W_enc: `[d, n_latents]`, of which only directions matter; W_dec: `[n_latents, d]`, of any norm; b_dec: `[d]`.

    Raises:
        ValueError: for an impossible `k`.

    Example:
        >>> sae = DistanceDictionary(d=4, n_latents=8, k=2)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(sae.encode(x), sae.encode(3 * x), atol=1e-5)
        True
    """

    family = "distance"
    dead_policy = "none"
    unit_atoms = False
    homogeneous = False
    latent_axis: ClassVar = {"W_enc": 1, "W_dec": 0}

    def __init__(self, d: int, n_latents: int, *, k: int, seed: int = 0):
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        self.k = k
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        self.W_enc = self._uniform(generator, self.d, self.n_latents, inputs=self.d)
        self.W_dec = self._uniform(generator, self.n_latents, self.d, inputs=self.n_latents)
        self.b_dec = nn.Parameter(torch.zeros(self.d))

    @staticmethod
    def _uniform(generator: torch.Generator, *shape: int, inputs: int) -> nn.Parameter:
        """Uniform within `1 / sqrt(inputs)`, as torch starts linear layers."""
        return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / inputs**0.5)

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    def pre(self, x: Tensor) -> Tensor:
        """Nearness `2 - sqrt(2 - 2 cos(x, w_i))`, `[..., n_latents]`."""
        cosines = F.normalize(x, dim=-1) @ F.normalize(self.W_enc, dim=0)
        return 2 - (2 - 2 * cosines).clamp(NEAREST, 4).sqrt()

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    @torch.no_grad()
    def fold_transform(self) -> None:
        """Nothing can be folded: the encoder has no bias that could take a mean.

        Raises:
            ValueError: behind any transform.
        """
        if self.transform.kind != "none":
            raise ValueError(
                f"The transform {self.transform.kind!r} cannot be folded into {self.family!r}, whose encoder has no "
                "bias; keep it as it is."
            )
