"""How often a latent fires on both sides of a pair."""

from __future__ import annotations

from torch import Tensor

from vlsae.metrics.paired_activation import require_pairs


def co_occurrence(z_images: Tensor, z_texts: Tensor) -> tuple[Tensor, Tensor]:
    """Share of pairs with a latent on both sides among those with it on either, and what chance would give.

    `P(v and t) / P(v or t)`; by chance, with the same rates and independent sides, `pq / (p + q - pq)`.

    Args:
        z_images, z_texts: `[N, n]`, row by row of a pair.

    Returns:
        `[n]` measured and `[n]` by chance; NaN for latents that never fire.

    Raises:
        ValueError: for codes that are no pairs.

    Example:
        >>> import torch
        >>> measured, chance = co_occurrence(torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]]))
        >>> measured.item(), round(chance.item(), 4)
        (1.0, 0.3333)
    """
    require_pairs(z_images, z_texts)
    image, text = z_images != 0, z_texts != 0
    p, q = image.double().mean(0), text.double().mean(0)
    measured = (image & text).double().mean(0) / (image | text).double().mean(0)
    return measured, p * q / (p + q - p * q)
