"""How the error falls with latents and sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares


@dataclass(frozen=True)
class ScalingLaw:
    """`L(n, k) = exp(alpha + b_k log k + b_n log n + gamma log k log n) + exp(zeta + eta log k)` (arXiv 2406.04093).

    Attributes:
        alpha, b_k, b_n, gamma, zeta, eta: see there; the second term is what no number of latents removes.
    """

    alpha: float
    b_k: float
    b_n: float
    gamma: float
    zeta: float
    eta: float

    def __call__(self, n, k) -> np.ndarray:
        """The error for `n` latents of which `k` are active."""
        log_n, log_k = np.log(n), np.log(k)
        falling = np.exp(self.alpha + self.b_k * log_k + self.b_n * log_n + self.gamma * log_k * log_n)
        return falling + np.exp(self.zeta + self.eta * log_k)


def fit_scaling_law(n, k, loss, restarts: int = 20, seed: int = 0) -> ScalingLaw:
    """Fit the law to errors of a grid of runs by least squares of logarithms, the best of several starts.

    Args:
        n: latents; k: active latents; loss: errors; one entry a run, at least 8 runs.
        restarts: starts; seed: of the starts.

    Raises:
        ValueError: for too few runs, or numbers that are not positive.
    """
    n, k, loss = (np.asarray(values, dtype=np.float64) for values in (n, k, loss))
    if len(n) < 8 or not ((n > 0).all() and (k > 0).all() and (loss > 0).all()):
        raise ValueError(f"{len(n)} runs were given; a law of six numbers needs at least 8, all values above 0.")

    def residual(numbers: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore"):
            return np.clip(np.nan_to_num(np.log(ScalingLaw(*numbers)(n, k)), nan=50.0), -50, 50) - np.log(loss)

    rng, best = np.random.default_rng(seed), None
    for _ in range(restarts):
        start = np.array([0.0, 0.0, -0.1, 0.0, np.log(loss.min()), -0.5]) + 0.3 * rng.standard_normal(6)
        found = least_squares(residual, start, max_nfev=4000, xtol=1e-15, ftol=1e-15, gtol=1e-15)
        best = found if best is None or found.cost < best.cost else best
    return ScalingLaw(*best.x.tolist())
