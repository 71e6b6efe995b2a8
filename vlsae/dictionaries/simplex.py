"""Projection on the probability simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def sparsemax(v: Tensor) -> Tensor:
    """The nearest point of the probability simplex, `max(v - tau, 0)` with `tau` such that it adds up to 1.

    Martins and Astudillo 2016 (arXiv 1602.02068), algorithm 1.

    Args:
        v: `[..., n]`.

    Returns:
        `[..., n]`, not negative, each row adding up to 1.

    Example:
        >>> sparsemax(torch.tensor([2.0, 1.5, 0.0])).tolist()
        [0.75, 0.25, 0.0]
    """
    ordered = v.detach().sort(dim=-1, descending=True).values
    ordered = ordered.float() if ordered.dtype.itemsize < 4 else ordered
    counts = torch.arange(1, v.shape[-1] + 1, device=v.device)
    size = (1 + counts * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    inside = v.detach() >= ordered.gather(-1, size - 1).to(v)
    tau = ((v * inside).sum(-1, keepdim=True) - 1) / inside.sum(-1, keepdim=True)
    return torch.relu(v - tau)
