"""Bases as dictionaries: the training-free baselines with codes of both signs (neurons, PCA, ICA, a random rotation)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary


def principal_axes(x: Tensor) -> Tensor:
    """The principal axes of `x [N, d]` as rows `[d, d]` in float64, by falling variance, each up to its sign."""
    centred = (x - x.mean(0)).double()
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T


@DICTIONARIES.register("projection")
class ProjectionDictionary(Dictionary):
    """Coordinates in a basis, the `k` largest by magnitude kept: `z = TopK_|.|((x - b_dec) W_enc)`.

    Codes have both signs. Bases are orthonormal, `W_enc = W_dec^T`, which makes this the best `k`-term approximation,
    but for ICA, whose `W_enc` is the inverse.

    Args:
        d: width of the activations.
        n_latents: number of basis vectors, at most `d`.
        k: coordinates kept a vector.
        seed: of the random rotation it starts from.

    Example:
        >>> basis = ProjectionDictionary(4, 4, k=4)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(basis(x), x, atol=1e-5)
        True
    """

    family = "projection"
    trainable = False
    made_by = "ProjectionDictionary.pca(x, k) (or .ica, .rotation, .neurons) from activations x [N, d]"
    signed = True

    def __init__(self, d: int, n_latents: int, *, k: int, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        if n_latents > d:
            raise ValueError(f"n_latents={n_latents} directions cannot be orthonormal in {d} dimensions.")
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        self.k = k
        random = torch.randn(d, d, generator=torch.Generator().manual_seed(seed))
        self._set_basis(torch.linalg.qr(random)[0][:n_latents])

    @torch.no_grad()
    def _set_basis(self, basis: Tensor, mean: Tensor | None = None) -> None:
        self.W_dec.copy_(basis)
        self.W_enc.copy_(basis.T)
        if mean is not None:
            self.b_dec.copy_(mean)

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    def activate(self, pre: Tensor) -> Tensor:
        indices = pre.abs().topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    @classmethod
    def rotation(cls, x: Tensor, k: int, seed: int = 0) -> ProjectionDictionary:
        """A random orthonormal basis around the mean of `x [N, d]`."""
        basis = cls(x.shape[1], x.shape[1], k=k, seed=seed)
        basis._set_basis(basis.W_dec.clone(), x.mean(0))
        return basis.requires_grad_(False)

    @classmethod
    def neurons(cls, x: Tensor, k: int) -> ProjectionDictionary:
        """The coordinates of the activations themselves, around the mean of `x [N, d]`."""
        basis = cls(x.shape[1], x.shape[1], k=k)
        basis._set_basis(torch.eye(x.shape[1]), x.mean(0))
        return basis.requires_grad_(False)

    @classmethod
    def ica(cls, x: Tensor, k: int, seed: int = 0) -> ProjectionDictionary:
        """Independent components of `x [N, d]` by scikit-learn's FastICA, with mixing directions of unit norm."""
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning

        model = FastICA(random_state=seed, whiten="unit-variance", max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline stops where its budget ends
            model.fit(x.double().cpu().numpy())
        mixing = torch.from_numpy(model.mixing_.T.copy())
        norms = mixing.norm(dim=1, keepdim=True)
        basis = cls(x.shape[1], x.shape[1], k=k)
        basis._set_basis((mixing / norms).float(), x.mean(0))
        with torch.no_grad():
            basis.W_enc.copy_(torch.from_numpy(model.components_).T * norms.T)
        return basis.requires_grad_(False)

    @classmethod
    def pca(cls, x: Tensor, k: int) -> ProjectionDictionary:
        """The principal axes of `x [N, d]`, by falling variance."""
        basis = cls(x.shape[1], x.shape[1], k=k)
        basis._set_basis(principal_axes(x).float(), x.mean(0))
        return basis.requires_grad_(False)
