"""Dictionaries that need no training, to compare trained ones with: clusters, parts, and `fit_baselines` for all."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.clusters import kmeans
from vlsae.dictionaries.least_squares import nonnegative_codes
from vlsae.dictionaries.projection import ProjectionDictionary

BASELINES = ("pca", "ica", "nmf", "kmeans", "random", "identity")


@DICTIONARIES.register("kmeans")
class KMeansDictionary(Dictionary):
    """Centroids as atoms; the code is 1 for the nearest: `xhat` is the centroid.

    Args:
        d: width of the activations.
        n_latents: number of centroids.
        seed: of the random centroids it starts from; use `fit` for the data's.

    Example:
        >>> sae = KMeansDictionary.fit(torch.tensor([[0.0], [0.2], [9.0]]), 2)
        >>> sae.encode(torch.tensor([[8.0]])).sum().item()
        1.0
    """

    family = "kmeans"
    trainable = False
    made_by = "KMeansDictionary.fit(x, n_latents) from activations x [N, d]"
    unit_atoms = False
    homogeneous = False

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        del self.W_enc, self.b_enc, self.b_dec
        self.register_buffer("b_dec", torch.zeros(self.d))

    @classmethod
    def fit(cls, x: Tensor, n_latents: int, seed: int = 0) -> KMeansDictionary:
        """Centroids of `x [N, d]` by mini-batch k-means."""
        made = cls(x.shape[1], n_latents)
        made.W_dec.data.copy_(kmeans(x.split(4096), n_latents, seed))
        return made.requires_grad_(False)

    def pre(self, x: Tensor) -> Tensor:
        """`2 x w_i - ||w_i||^2`: largest for the nearest centroid."""
        return 2 * x @ self.W_dec.T - self.W_dec.square().sum(1)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.zeros_like(pre).scatter(-1, pre.argmax(-1, keepdim=True), 1.0)


@DICTIONARIES.register("nmf")
class NMFDictionary(Dictionary):
    """Non-negative matrix factorisation (Lee and Seung 1999) of activations over their smallest value a coordinate.

    `x ~ b_dec + z W_dec` with `z, W_dec >= 0`; codes by non-negative least squares, the `k` of largest contribution
    fitted again.

    Args:
        d: width of the activations.
        n_latents: number of parts.
        k: active parts a vector; all where 0.
        seed: of the random parts it starts from; use `fit` for the data's.

    Raises:
        ValueError: for an impossible `k`.
    """

    family = "nmf"
    trainable = False
    made_by = "NMFDictionary.fit(x, n_latents, k) from activations x [N, d]"
    unit_atoms = False
    homogeneous = False  # as a baseline it is fitted behind whatever transform there is

    def __init__(self, d: int, n_latents: int, *, k: int = 0, seed: int = 0):
        if not 0 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 0 (all) and n_latents={n_latents}.")
        self.k = k
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        del self.W_enc, self.b_enc
        self.W_dec.data.abs_()

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    @classmethod
    def fit(cls, x: Tensor, n_latents: int, k: int = 0, seed: int = 0) -> NMFDictionary:
        """Parts of `x [N, d]` by scikit-learn's mini-batch NMF."""
        from sklearn.decomposition import MiniBatchNMF
        from sklearn.exceptions import ConvergenceWarning

        made = cls(x.shape[1], n_latents, k=k)
        low = x.min(0).values
        model = MiniBatchNMF(n_latents, random_state=seed, init="nndsvda", batch_size=4096, max_iter=100, tol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline stops where its budget ends
            model.fit((x - low).clamp_min(0).double().cpu().numpy())
        made.W_dec.data.copy_(torch.from_numpy(model.components_))
        made.b_dec.data.copy_(low)
        return made.requires_grad_(False)

    def _encode(self, x: Tensor) -> Tensor:
        flat = (x - self.b_dec).reshape(-1, self.d).float()
        atoms = self.atoms.float()
        target, gram = flat @ atoms.T, atoms @ atoms.T
        z = nonnegative_codes(target, gram, sweeps=100)
        if self.k:
            kept = (z * atoms.norm(dim=1)).topk(self.k, dim=1).indices
            fitted = nonnegative_codes(target.gather(1, kept), gram[kept[:, :, None], kept[:, None]], z.gather(1, kept))
            z = torch.zeros_like(z).scatter(1, kept, fitted)
        return z.to(x).reshape(*x.shape[:-1], self.n_latents)


def fit_baselines(
    x: Tensor, k: int, n_latents: int | None = None, seed: int = 0, parts: int = 64
) -> dict[str, Dictionary]:
    """Every training-free dictionary on `x [N, d]`, with at most `k` active latents a vector.

    Args:
        x: `[N, d]`.
        k: at most `d`; k-means always has one.
        n_latents: of k-means; `d` where None. The bases (PCA, ICA, a random rotation, the coordinates themselves)
            have `d`.
        seed: of everything random.
        parts: of NMF, whose codes are found by optimisation; at most `d` are made.

    Returns:
        Dictionaries by name: pca, ica, nmf, kmeans, random, identity.
    """
    n = n_latents or x.shape[1]
    return {
        "pca": ProjectionDictionary.pca(x, k),
        "ica": ProjectionDictionary.ica(x, k, seed),
        "nmf": NMFDictionary.fit(x, min(parts, x.shape[1]), min(k, parts), seed),
        "kmeans": KMeansDictionary.fit(x, n, seed),
        "random": ProjectionDictionary.rotation(x, k, seed),
        "identity": ProjectionDictionary.neurons(x, k),
    }
