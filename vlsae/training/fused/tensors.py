"""The maths of a step over active codes by torch operations, on any device and with any team."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.selection import Rows
from vlsae.dictionaries.selection_tensors import inner_products
from vlsae.training.fused.entries import Errors
from vlsae.training.team import Team


def nested_errors(
    y: Tensor, W: Tensor, bias: Tensor, codes: Rows, ends: Tensor, weights: Tensor, scale: Tensor, team: Team
) -> Errors:
    """Errors of nested reconstructions, `sum_g weights[g] sum_t scale[t] ||y_t - xhat_tg||^2`, and their gradients.

    The reconstruction of prefix `g` is `bias + sum_{i < ends[g]} z_i W_i`, a sum over parts of the dictionary.

    Args:
        y: `[B, d]`; W: `[n, d]`; bias: `[d]`.
        codes: of the latents that `W` holds.
        ends: rising, `[groups]`, counted in these latents; weights: `[groups]`; scale: `[B]`.
        team: processes with other parts of the latents.
    """
    n, groups = len(y), len(ends)
    group = torch.searchsorted(ends, codes.idx, right=True)
    bag = codes.numbers * groups + group
    starts = torch.searchsorted(bag, torch.arange(n * groups, device=y.device))
    parts = F.embedding_bag(codes.idx.long(), W, starts, mode="sum", per_sample_weights=codes.val)
    xhat = team.over_latents(parts).view(n, groups, len(bias)).cumsum(1) + bias
    error = xhat - y[:, None]
    each = scale[:, None] * weights
    loss = (each * error.square().sum(-1)).sum(dtype=torch.float64)
    G = (2 * each[..., None] * error).flip(1).cumsum(1).flip(1).contiguous()
    return Errors(G, error[:, -1], inner_products(G.flatten(0, 1), bag, W, codes.idx.long()), loss)


def gathered(idx: Tensor, row: Tensor, weight: Tensor, G: Tensor, n: int) -> Tensor:
    """`[n, d]`, the sum of `weight[e] G[row[e]]` over the entries of every latent."""
    return torch.sparse_coo_tensor(torch.stack([idx, row]).long(), weight, (n, len(G)), check_invariants=False) @ G
