"""How well the firing of one latent tells a concept."""

from __future__ import annotations

from torch import Tensor


def latent_concept_f1(z: Tensor, labels: Tensor, threshold: float = 1e-6) -> Tensor:
    """F1 of "latent fires" as a prediction of each concept, `[n_latents, n_concepts]` (arXiv 2503.01822).

    Args:
        z: codes `[N, n_latents]`; a latent fires above `threshold`.
        labels: bool `[N, n_concepts]`.

    Example:
        >>> import torch
        >>> latent_concept_f1(torch.tensor([[1.0], [0.0]]), torch.tensor([[True], [False]])).item()
        1.0
    """
    fires, truth = (z > threshold).double(), labels.double()
    hits = fires.T @ truth
    return 2 * hits / (fires.sum(0)[:, None] + truth.sum(0)).clamp_min(1e-12)
