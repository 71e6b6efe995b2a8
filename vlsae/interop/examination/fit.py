"""How well a dictionary reconstructs tokens, with an interval over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary

BATCH = 4096  # tokens encoded at a time
RESAMPLES = 1000  # enough for the ends of a 95 % interval
Reconstruct = Callable[[Tensor], tuple[Codes, Tensor]]


@dataclass(frozen=True)
class Sums:
    """What explained variance is made of, an entry an image.

    Attributes:
        error: `sum ||x - xhat||^2` over the image's tokens, `[I]`; squares: `sum ||x||^2`, `[I]`; total: `sum x`, `[I, d]`.
        count: tokens an image.
    """

    error: np.ndarray
    squares: np.ndarray
    total: np.ndarray
    count: int

    @classmethod
    def of(cls, x: Tensor, xhat: Tensor) -> Sums:
        """Of tokens and reconstructions `[I, P, d]`."""
        x, xhat = x.double(), xhat.double()
        parts = ((x - xhat).square().sum((1, 2)), x.square().sum((1, 2)), x.sum(1))
        return cls(*(part.numpy() for part in parts), x.shape[1])

    def ev(self, weights: np.ndarray | None = None) -> np.ndarray:
        """`1 - sum ||x - xhat||^2 / sum ||x - mean||^2` for rows of image weights `[B, I]`; one row of ones where None.

        NaN where all tokens are the same.
        """
        weights = np.ones((1, len(self.error))) if weights is None else weights
        n = self.count * weights.sum(1)
        spread = weights @ self.squares - np.square(weights @ self.total).sum(1) / n
        spread = np.where(spread > 1e-12 * (weights @ self.squares), spread, np.nan)
        return 1 - weights @ self.error / spread


def resample(n_images: int, seed: int) -> np.ndarray:
    """How often each bootstrap sample has each image, `[RESAMPLES, n_images]`."""
    return np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), RESAMPLES).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 %."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


@dataclass(frozen=True)
class Fit:
    """A dictionary on tokens.

    Attributes:
        sums: behind the explained variance.
        l0: active latents of every token, `[N]`.
        fired: `[n_latents]`, whether a latent is active on any token.
        negative: share of codes below 0.
        stretch: `E||r||^2 / E<x, r>` of tokens and reconstructions, each around its own mean: 1 where reconstructions have
            the right length, above where they are too long.
    """

    sums: Sums
    l0: Tensor
    fired: Tensor
    negative: float
    stretch: float

    @property
    def ev(self) -> float:
        return float(self.sums.ev()[0])

    @property
    def mean_l0(self) -> float:
        return float(self.l0.double().mean())


def plainly(dictionary: Dictionary) -> Reconstruct:
    """Codes and reconstructions as the dictionary makes them."""

    def reconstruct(x: Tensor) -> tuple[Codes, Tensor]:
        codes = dictionary.encode_sparse(x)
        return codes, dictionary.decode(codes, like=x)

    return reconstruct


@torch.no_grad()
def fit(dictionary: Dictionary, x: Tensor, reconstruct: Reconstruct | None = None) -> Fit:
    """The fit to tokens `x [I, P, d]`; `reconstruct` where it is not the dictionary as it is."""
    reconstruct = reconstruct or plainly(dictionary)
    flat = x.flatten(0, 1)
    fired = torch.zeros(dictionary.n_latents, dtype=torch.bool)
    l0, parts, below, active = [], [], 0, 0
    for batch in flat.split(BATCH):
        codes, xhat = reconstruct(batch.to(dictionary.W_dec))
        there = codes.values != 0
        l0.append(torch.bincount(codes.rows[there], minlength=codes.n).cpu())
        fired[codes.latents[there].cpu()] = True
        below, active = below + int((codes.values < 0).sum()), active + int(there.sum())
        parts.append(xhat.float().cpu())
    xhat = torch.cat(parts).view_as(x)
    return Fit(Sums.of(x, xhat), torch.cat(l0), fired, below / max(active, 1), _stretch(flat, xhat.flatten(0, 1)))


def _stretch(x: Tensor, xhat: Tensor) -> float:
    centred, r = (values.double() - values.double().mean(0) for values in (x, xhat))
    along = float((centred * r).sum())
    return float(r.square().sum()) / along if along > 0 else float("nan")


def shuffled(x: Tensor, seed: int) -> Tensor:
    """Tokens `[I, P, d]` whose deviations from their mean are permuted between coordinates, the same way for all."""
    mean = x.mean((0, 1))
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(seed))
    return mean + (x - mean)[..., order]
