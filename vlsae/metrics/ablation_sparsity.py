"""How many outputs a latent's removal touches."""

from __future__ import annotations

import torch
from torch import Tensor


def ablation_sparsity(change: Tensor) -> Tensor:
    """`(||D||_1 / ||D||_2)^2 / size` of output changes `D`, centred by their median: the share of outputs affected.

    `1 / size` where one output changes, 1 where all change alike in size (Gao et al. 2024, arXiv 2406.04093, section
    4.5). Classes take the place of the vocabulary, images that of positions.

    Args:
        change: `[..., outputs]`, logits with the latent minus without it; each leading entry is one ablation. Flatten
            further axes of outputs first.

    Returns:
        `[...]`; 0 where nothing changes.

    Example:
        >>> ablation_sparsity(torch.tensor([0.0, 0.0, 5.0, 0.0])).item()
        0.25
    """
    centred = change.double() - change.double().median(-1, keepdim=True).values
    energy = centred.square().sum(-1)
    return torch.where(energy > 0, centred.abs().sum(-1).square() / energy.clamp_min(1e-300), 0.0) / change.shape[-1]
