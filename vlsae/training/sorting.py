"""Latents in the order of their energy, so that short prefixes hold the strongest."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary


@torch.no_grad()
def sort_latents(dictionary: Dictionary, z: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Renumber latents by falling mean square of their codes, the optimiser's moments with them.

    The function stays the same: `decode(encode(x))` does not see numbers. Random prefixes want this (Bussmann et al.
    2025, arXiv 2503.17547, toy model): what is used most is then in every prefix.

    Args:
        dictionary: of a family whose weights are `W_enc, b_enc, W_dec, b_dec` and perhaps `threshold`.
        z: codes of a batch, `[B, n_latents]`.
        optimizer: Adam or AdamW over the dictionary's parameters.

    Returns:
        `[n_latents]`, the former number of each latent.

    Raises:
        ValueError: for a family with other weights.
    """
    weights = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
    own = {name: value for name, value in weights.items() if not name.startswith("transform.") and name != "b_dec"}
    axes = dictionary.latent_axis
    if not own.keys() <= axes.keys():
        other = sorted(own.keys() - axes.keys())[0]
        raise ValueError(f"Latents of {dictionary.family!r} cannot be sorted: it also has {other}; use sort_latents=0.")
    order = z.detach().square().mean(0).argsort(descending=True, stable=True)
    for name, value in own.items():
        moments = [m for key, m in optimizer.state.get(value, {}).items() if key != "step"]
        for tensor in (value, *moments):
            tensor.copy_(tensor.index_select(axes[name], order))
    return order
