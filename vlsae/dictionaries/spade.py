"""SpaDE (Hindupur et al. 2025): latents by distance to prototypes, codes on the probability simplex."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.simplex import sparsemax


@DICTIONARIES.register("spade")
class SpaDEDictionary(Dictionary):
    """`z = sparsemax(-scale ||x - w_i||^2)`, `xhat = z W_dec` (arXiv 2503.01822).

    Codes add up to 1, so a reconstruction is a convex combination of atoms; a latent's region may be any shape around
    its prototype, where a ReLU latent has a half-space. Distances enter as `2 x w_i - ||w_i||^2`: the projection does
    not see what all latents share.

    Args:
        d: width of the activations.
        n_latents: number of prototypes and atoms.
        start: where training puts the prototypes first: "data", on training vectors, or "normal".
        seed: of the initial weights.

    Attributes:
        W_enc: `[d, n_latents]`, prototypes as columns; W_dec: `[n_latents, d]`, of any length; scale: positive.

    Raises:
        ValueError: for another start.

    Example:
        >>> z = SpaDEDictionary(d=4, n_latents=8).encode(torch.randn(5, 4))
        >>> torch.allclose(z.sum(-1), torch.ones(5))
        True
    """

    family = "spade"
    objectives = ("reconstruction", "locality")
    dead_policy = "none"
    unit_atoms = False
    homogeneous = False

    def __init__(self, d: int, n_latents: int, *, start: str = "data", seed: int = 0):
        if start not in ("data", "normal"):
            raise ValueError(f"start={start!r} is unknown; use 'data' or 'normal'.")
        super().__init__(d, n_latents, seed=seed)
        self.start, self.seed = start, seed

    def _init_weights(self, generator: torch.Generator) -> None:
        prototypes = torch.randn(self.n_latents, self.d, generator=generator)
        self.W_enc = nn.Parameter(prototypes.T.clone())
        self.W_dec = nn.Parameter(prototypes)
        self.raw_scale = nn.Parameter(torch.tensor([math.log(math.expm1(1 / (2 * self.d)))]))
        self.register_buffer("b_dec", torch.zeros(self.d))

    @property
    def scale(self) -> Tensor:
        """The factor of squared distances, `softplus(raw_scale)`, `[1]`."""
        return F.softplus(self.raw_scale)

    def pre(self, x: Tensor) -> Tensor:
        """`scale (2 x w_i - ||w_i||^2)`: minus the squared distances, up to what is equal for all latents."""
        return self.scale * (2 * x @ self.W_enc - self.W_enc.square().sum(0))

    def activate(self, pre: Tensor) -> Tensor:
        return sparsemax(pre)

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """Prototypes and atoms on random vectors of the sample, every vector once before any twice."""
        if self.start != "data":
            return
        generator = torch.Generator().manual_seed(self.seed)
        rounds = math.ceil(self.n_latents / len(sample))
        drawn = torch.cat([torch.randperm(len(sample), generator=generator) for _ in range(rounds)])[: self.n_latents]
        jitter = torch.randn(self.n_latents, self.d, generator=generator).to(sample)
        self.W_dec.copy_(sample[drawn.to(sample.device)] + 1e-3 * sample.std() * jitter)
        self.W_enc.copy_(self.W_dec.T)
