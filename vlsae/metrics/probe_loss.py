"""How well the best single latent predicts a label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 30
RIDGE = 1e-6  # of Newton's method; separating latents would otherwise get endless weights


@torch.no_grad()
def probe_losses(z: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a one-dimensional logistic probe on every latent, `[n_latents]`, in nats.

    `min_{w, b} E[-y log sigma(w z_i + b) - (1 - y) log(1 - sigma(w z_i + b))]`, by Newton's method on all latents at
    once (Gao et al. 2024, arXiv 2406.04093, section 4.2, where `probe_loss` is the least of them).

    Args:
        z: `[N, n_latents]`, codes or pre-activations.
        labels: bool `[N]`, both values present.

    Returns:
        At most the entropy of the labels, which a latent without information gets.

    Raises:
        ValueError: for labels that are all alike, or another number of them.

    Example:
        >>> labels = torch.tensor([True, False] * 8)
        >>> probe_losses(torch.stack([labels.float(), torch.ones(16)], 1), labels).round(decimals=1).tolist()
        [0.0, 0.7]
    """
    if labels.shape != z.shape[:1] or labels.bool().all() or not labels.bool().any():
        raise ValueError(f"Labels of shape {tuple(labels.shape)} for {len(z)} rows: give one a row, both values there.")
    y, x = labels.double()[:, None], z.double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-12)
    w = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    b = torch.full_like(w, float(torch.logit(y.mean())))

    def losses(w: Tensor, b: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(x * w + b, y.expand_as(x), reduction="none").mean(0)

    best = losses(w, b)
    for _ in range(ITERATIONS):
        p = torch.sigmoid(x * w + b)
        error, curve = p - y, p * (1 - p)
        gw, gb = (error * x).mean(0), error.mean(0)
        ww, wb, bb = (curve * x * x).mean(0) + RIDGE, (curve * x).mean(0), curve.mean(0) + RIDGE
        determinant = (ww * bb - wb * wb).clamp_min(1e-18)
        step_w, step_b = (bb * gw - wb * gb) / determinant, (ww * gb - wb * gw) / determinant
        size = torch.ones_like(w)
        for _ in range(8):  # halve the step where the loss would rise
            new = losses(w - size * step_w, b - size * step_b)
            size = torch.where(new <= best, size, size / 2)
        worse = losses(w - size * step_w, b - size * step_b) > best
        w, b = torch.where(worse, w, w - size * step_w), torch.where(worse, b, b - size * step_b)
        best = losses(w, b)
    return best
