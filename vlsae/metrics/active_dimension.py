"""How many latents are on for one input, without a threshold to choose."""

from __future__ import annotations

import torch
from torch import Tensor


def otsu(values: Tensor) -> Tensor:
    """The threshold of each row that splits it into the two groups of least variance within (Otsu 1979).

    Args:
        values: `[..., n]`, n at least 2.

    Returns:
        `[...]`, the largest value of the lower group.

    Example:
        >>> otsu(torch.tensor([0.0, 0.1, 5.0, 5.1])).item()
        0.10000000149011612
    """
    ordered = values.sort(dim=-1).values.double()
    n = ordered.shape[-1]
    sums, size = ordered.cumsum(-1)[..., :-1], torch.arange(1, n, device=values.device)
    total = ordered.sum(-1, keepdim=True)
    between = sums.square() / size + (total - sums).square() / (n - size)  # large where the variance within is small
    return ordered.gather(-1, between.argmax(-1, keepdim=True))[..., 0].to(values)


def active_dimension(log_variance: Tensor) -> Tensor:
    """Number of latents in the lower group of `log sigma^2`, an input at a time: `[...]` (VAEase, arXiv 2506.04859).

    Args:
        log_variance: `[..., n_latents]`, of `VAEaseDictionary.variance(x).log()`. For other families give
            `-(|z| + eps).log()`, whose lower group are the large codes.
    """
    return (log_variance <= otsu(log_variance)[..., None]).sum(-1)
