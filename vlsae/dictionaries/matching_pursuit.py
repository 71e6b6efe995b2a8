"""Matching-pursuit dictionaries (Costa et al. 2025): the encoder is a greedy decomposition over the atoms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.pursuit import matching_pursuit, orthogonal_matching_pursuit

GRAM_LIMIT = 4096  # atoms up to which their Gram matrix is made for encoding


@DICTIONARIES.register("matching_pursuit")
class MatchingPursuitDictionary(Dictionary):
    """`z` of `k` greedy steps over the atoms, each on what the ones before left (MP-SAE, arXiv 2506.03093).

    There is no encoder matrix. What is left is orthogonal to the atom just taken, so latents need to be different only
    from those they fire with: concepts of several levels fit. The norm of the rest never rises, so `k` can be
    changed afterwards (`encode_at`). Atoms are kept at unit norm: above a norm of sqrt(2) pursuit diverges.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: steps, and the largest number of active latents.
        nonnegative: choose positive correlations alone (the paper); else codes have both signs.
        orthogonal: fit all chosen codes again after every step (orthogonal matching pursuit).
        tol: stop where the norm of the rest is at most this.
        repeats: go on after an atom is chosen again; else that step is the last (SAELens).
        at_least: steps before `tol` is looked at; SAELens takes one whatever the input.
        seed: of the initial atoms.

    Raises:
        ValueError: for an impossible `k`, a negative `at_least`, or `at_least` with `orthogonal`.

    Example:
        >>> sae = MatchingPursuitDictionary(d=4, n_latents=8, k=3)
        >>> x = torch.randn(5, 4)
        >>> bool((sae.encode_at(x, 1) != 0).sum(1).max() <= 1)
        True
    """

    family = "matching_pursuit"
    dead_policy = "auxk"

    def __init__(
        self, d: int, n_latents: int, *, k: int, nonnegative: bool = True, orthogonal: bool = False, tol: float = 0.0,
        repeats: bool = True, at_least: int = 0, seed: int = 0,
    ):  # fmt: skip
        super().__init__(d, n_latents, seed=seed)
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        if at_least < 0 or (at_least and orthogonal):
            raise ValueError(f"at_least={at_least} must be 0 or more, and 0 for orthogonal pursuit.")
        self.k, self.nonnegative, self.orthogonal, self.tol = k, nonnegative, orthogonal, tol
        self.repeats, self.at_least = repeats, at_least

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        del self.W_enc, self.b_enc

    @property
    def settings(self) -> dict[str, Any]:
        names = ("k", "nonnegative", "orthogonal", "tol", "repeats", "at_least")
        return {name: getattr(self, name) for name in names}

    @property
    def signed(self) -> bool:
        return not self.nonnegative

    @property
    def homogeneous(self) -> bool:
        return self.tol == 0

    def pre(self, x: Tensor) -> Tensor:
        """Correlations `(x - b_dec) W_dec^T`, `[..., n_latents]`: what the first step chooses among."""
        return (x - self.b_dec) @ self.W_dec.T

    def _pursue(self, x: Tensor, k: int, by_gram: bool = True) -> Tensor:
        flat = (x - self.b_dec).reshape(-1, self.d)
        if self.orthogonal:
            z = orthogonal_matching_pursuit(flat, self.W_dec, k, self.nonnegative, self.tol)
        else:
            z = matching_pursuit(flat, self.W_dec, k, self.nonnegative, self.tol, by_gram, self.repeats, self.at_least)
        return z.reshape(*x.shape[:-1], self.n_latents)

    def _encode(self, x: Tensor) -> Tensor:
        return self._pursue(x, self.k, by_gram=self.n_latents <= GRAM_LIMIT)

    def encode_at(self, x: Tensor, k: int) -> Tensor:
        """Codes after `k` steps, any number.

        Raises:
            ValueError: for fewer than one step.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        return self._pursue(self.transform(x.to(self.W_dec.dtype)), k)

    def trace(self, x: Tensor) -> Trace:
        z = self._pursue(x, self.k, by_gram=False)
        xhat = self._decode(z)
        return Trace((x - xhat).detach() @ self.W_dec.T, z, xhat)

    def fold_scale(self, scale: float) -> None:
        if self.tol:
            raise ValueError("A scale cannot be folded into pursuit with tol > 0; its stop depends on the scale.")
        with torch.no_grad():
            self.b_dec.div_(scale)
