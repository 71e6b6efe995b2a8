"""Which modality a latent belongs to."""

from __future__ import annotations

from torch import Tensor


def modality_score(z_images: Tensor, z_texts: Tensor) -> Tensor:
    """Energy that a latent has in images against texts, `(E_v - E_t) / (E_v + E_t)`, `E_m = mean z_m^2`.

    Args:
        z_images, z_texts: codes of one dictionary, `[N, n]` and `[M, n]`.

    Returns:
        `[n]`: 1 for latents of images alone, -1 of texts alone, 0 for both alike; NaN where silent in both.

    Raises:
        ValueError: for unequal numbers of latents.

    Example:
        >>> import torch
        >>> modality_score(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])).tolist()
        [1.0, 0.0, nan]
    """
    if z_images.shape[1] != z_texts.shape[1]:
        raise ValueError(
            f"Codes have {z_images.shape[1]} and {z_texts.shape[1]} latents; give codes of one dictionary, or match them "
            "first (vlsae.metrics.matching.best_partners)."
        )
    image, text = (z.double().square().mean(0) for z in (z_images, z_texts))
    return (image - text) / (image + text)


def bimodal_latents(z_images: Tensor, z_texts: Tensor, threshold: float = 0.8) -> Tensor:
    """Latents of both modalities, `|score| <= threshold`; bool `[n]`, False for silent ones.

    Args:
        z_images, z_texts: as for `modality_score`.
        threshold: largest score of a latent of both.

    Example:
        >>> import torch
        >>> bimodal_latents(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])).tolist()
        [False, True, False]
    """
    return modality_score(z_images, z_texts).abs() <= threshold
