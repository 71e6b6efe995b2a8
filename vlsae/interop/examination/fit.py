"""How well a dictionary reconstructs tokens, with an interval over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary

BLOCK = 2**24  # pre-activations at a time: most families hold some such tables of 64 MB at once, and never a larger one
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
    def of(cls, x: Tensor, error: Tensor) -> Sums:
        """Of tokens `x [I, P, d]` and `||x - xhat||^2` of each, `[I, P]`; an image at a time in float64."""
        squares = torch.stack([image.double().square().sum() for image in x])
        total = torch.stack([image.double().sum(0) for image in x])
        return cls(error.double().sum(1).numpy(), squares.numpy(), total.numpy(), x.shape[1])

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
    """The fit to tokens `x [I, P, d]`; `reconstruct` where it is not the dictionary as it is.

    Tokens are encoded in blocks of `BLOCK` pre-activations, of which only sums are kept.
    """
    reconstruct = reconstruct or plainly(dictionary)
    flat = x.flatten(0, 1)
    seen = _Seen(dictionary.n_latents, torch.stack([image.double().mean(0) for image in x]).mean(0))
    for part in flat.split(max(1, BLOCK // dictionary.n_latents)):
        seen.add(part, *reconstruct(part.to(dictionary.W_dec)))
    sums = Sums.of(x, torch.cat(seen.error).view(x.shape[:2]))
    return Fit(sums, torch.cat(seen.l0), seen.fired, seen.below / max(seen.active, 1), seen.stretch())


class _Seen:
    """What is kept of each block: error and active latents of a token, which latents fired, sums behind the stretch.

    Args:
        n_latents: of the dictionary.
        mean: of all tokens, float64 `[d]`; reconstructions are summed around it, so that a large mean costs no digits.
    """

    def __init__(self, n_latents: int, mean: Tensor):
        self.error: list[Tensor] = []
        self.l0: list[Tensor] = []
        self.fired = torch.zeros(n_latents, dtype=torch.bool)
        self.n = self.below = self.active = 0
        self.mean, self.total = mean, torch.zeros_like(mean)
        self.spread = self.squares = self.along = 0.0

    def add(self, x: Tensor, codes: Codes, xhat: Tensor) -> None:
        """A block of tokens `[b, d]`, with their codes and reconstructions."""
        there = codes.values != 0
        self.l0.append(torch.bincount(codes.rows[there], minlength=codes.n).cpu())
        self.fired[codes.latents[there].cpu()] = True
        self.below, self.active = self.below + int((codes.values < 0).sum()), self.active + int(there.sum())
        centred, r = x.double() - self.mean, xhat.double().cpu() - self.mean
        self.error.append((centred - r).square().sum(1))
        self.n, self.total = self.n + len(r), self.total + r.sum(0)
        self.spread, self.squares = self.spread + float(centred.square().sum()), self.squares + float(r.square().sum())
        self.along += float((centred * r).sum())

    def stretch(self) -> float:
        """`E||r||^2 / E<x, r>`, each around its own mean; NaN where reconstructions do not follow the tokens."""
        if not self.along > 1e-12 * (self.spread * self.squares) ** 0.5:  # rounding is below
            return float("nan")
        return (self.squares - float(self.total.square().sum()) / self.n) / self.along


def shuffled(x: Tensor, seed: int) -> Tensor:
    """Tokens `[I, P, d]` whose deviations from their mean are permuted between coordinates, the same way for all."""
    mean = x.mean((0, 1))
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(seed))
    return mean + (x - mean)[..., order]
