"""BatchTopK dictionaries (Bussmann et al. 2024): k active latents a token on average, a threshold at inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace
from vlsae.dictionaries.selection import Products, Rows, positive

MEMORY = 0.99  # of the moving average: a hundred batches are exact enough, and a short run forgets its start


@DICTIONARIES.register("batch_topk")
class BatchTopKDictionary(Dictionary):
    """In training the `B k` largest positive pre-activations of a batch of `B` tokens; afterwards a threshold.

    `z = pre * 1[pre > threshold]`, with the threshold that training saw: a moving average of the smallest value kept
    (arXiv 2412.06410; Leask et al. 2025, arXiv 2502.04878, section 3). So a token's codes do not depend on its batch.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        k: mean number of active latents a token, 1 to `n_latents`.
        seed: of the initial weights.

    Attributes:
        threshold: `[n_latents]`, one number repeated, which makes the trained dictionary a JumpReLU one for SAELens;
            0 (a ReLU dictionary) before training.

    Raises:
        ValueError: for an impossible `k`.

    Example:
        >>> sae = BatchTopKDictionary(d=4, n_latents=8, k=2)
        >>> int((sae.trace(torch.randn(16, 4)).z > 0).sum()) <= 32
        True
    """

    family = "batch_topk"

    def __init__(self, d: int, n_latents: int, *, k: int, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        if not 1 <= k <= n_latents:
            raise ValueError(f"k={k} must lie between 1 and n_latents={n_latents}.")
        self.k = k
        self.register_buffer("threshold", torch.zeros(n_latents))

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k}

    @property
    def can_pick(self) -> bool:
        """Where one threshold serves all latents, as training leaves it."""
        return bool((self.threshold == self.threshold[0]).all())

    def pick(self, products: Products) -> Rows:
        return positive(products, max(0.0, float(self.threshold[0])))

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre) * (pre > self.threshold)

    def select(self, pre: Tensor) -> Tensor:
        """The `B k` largest of all positive pre-activations `[B, n_latents]`, the rest 0."""
        positive = torch.relu(pre)
        flat = positive.flatten()
        values, at = flat.topk(min(len(pre) * self.k, flat.numel()), sorted=False)
        return torch.zeros_like(flat).scatter(0, at, values).reshape(pre.shape)

    def trace(self, x: Tensor) -> Trace:
        pre = self.pre(x)
        z = self.select(pre)
        kept = z.detach()[z > 0]
        if torch.is_grad_enabled() and len(kept):
            self.remember(kept.min())
        return Trace(pre, z, self._decode(z))

    @torch.no_grad()
    def remember(self, smallest: Tensor) -> None:
        """Let the threshold follow the smallest value that a batch of training kept."""
        old = self.threshold[0]
        self.threshold.fill_(smallest if old == 0 else MEMORY * old + (1 - MEMORY) * smallest)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        self.threshold.div_(scale)
