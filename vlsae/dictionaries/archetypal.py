"""Archetypal dictionaries (Fel et al. 2025): atoms are mixtures of points of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.clusters import kmeans


@DICTIONARIES.register("archetypal")
class ArchetypalDictionary(Dictionary):
    """`W_dec = exp(s) (mixture C + relaxation)`, rows of `mixture` on the simplex, `||relaxation_i|| <= delta`.

    `C` are fixed candidates, k-means centroids of the data; the encoder is linear with TopK. `delta=0` is A-SAE, whose
    atoms lie in the cone of the data; RA-SAE (arXiv 2502.12892, equations 4 to 6) lets them leave its hull by `delta`.
    The bound is one for each row, as in the paper's algorithm. The seed draws candidates and first mixtures anew:
    equal starts, not the constraint, make runs of one seed alike.

    Args:
        d: width of the activations; the paper standardises them (`input_transform="standardise"`).
        n_latents: number of atoms.
        k: active latents a token.
        candidates: number of points `C`.
        delta: how far an atom may lie off the hull.
        seed: of candidates and initial weights.

    Attributes:
        candidates: `[n_candidates, d]`; mixture: `[n_latents, n_candidates]`, which candidates an atom consists of.

    Raises:
        ValueError: for an impossible `k`, no candidates, or a negative `delta`.

    Example:
        >>> sae = ArchetypalDictionary(d=4, n_latents=8, k=2, candidates=5)
        >>> sae.prepare(torch.randn(20, 4))
        >>> torch.allclose(sae.mixture.sum(1), torch.ones(8))
        True
    """

    family = "archetypal"
    dead_policy = "auxk"
    unit_atoms = False
    start_sample = 65_536

    def __init__(self, d: int, n_latents: int, *, k: int, candidates: int = 256, delta: float = 1.0, seed: int = 0):
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        if candidates < 1 or delta < 0:
            raise ValueError(f"candidates={candidates} must be at least 1 and delta={delta} at least 0.")
        self.k, self.n_candidates, self.delta, self.seed = k, candidates, delta, seed
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        n, d, points = self.n_latents, self.d, self.n_candidates
        self.register_buffer("candidates", torch.randn(points, d, generator=generator))
        self.register_buffer("b_dec", torch.zeros(d))
        self.mixture = nn.Parameter(torch.zeros(n, points))
        self.relaxation = nn.Parameter(torch.zeros(n, d))
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.W_enc = nn.Parameter(torch.zeros(d, n))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self._mix(generator)

    @torch.no_grad()
    def _mix(self, generator: torch.Generator) -> None:
        """Every atom near one candidate, each candidate once before any twice; the encoder is the inverse of each."""
        if self.mixture.is_meta:  # shapes are all that is asked for
            return
        n, points = self.mixture.shape
        rounds = -(-n // points)
        near = torch.cat([torch.randperm(points, generator=generator) for _ in range(rounds)])[:n]
        weights = torch.rand(n, points, generator=generator).square()
        weights = 0.1 * weights / weights.sum(1, keepdim=True)
        self.mixture.copy_(weights.scatter_add(1, near[:, None], torch.full((n, 1), 0.9)))
        atoms = self.W_dec
        self.W_enc.copy_((atoms / atoms.square().sum(1, keepdim=True).clamp_min(1e-6)).T)

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "candidates": self.n_candidates, "delta": self.delta}

    @property
    def W_dec(self) -> Tensor:
        return self.log_scale.exp() * (self.mixture @ self.candidates + self.relaxation)

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """Candidates from the sample, read in mini-batches."""
        self.candidates.copy_(kmeans(sample.split(4096), self.n_candidates, self.seed))
        self._mix(torch.Generator().manual_seed(self.seed))

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, torch.relu(values))

    @torch.no_grad()
    def constrain(self) -> None:
        """Mixtures back to the simplex, relaxations back into the ball of radius `delta`."""
        self.mixture.relu_()
        self.mixture.div_(self.mixture.sum(1, keepdim=True).clamp_min(1e-12))
        norms = self.relaxation.norm(dim=1, keepdim=True)
        self.relaxation.mul_((self.delta / norms.clamp_min(1e-12)).clamp_max(1.0))
