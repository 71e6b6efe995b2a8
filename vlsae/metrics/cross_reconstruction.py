"""How well the codes of one model rebuild the activations of another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlsae.dictionaries.universal import UniversalDictionary


@torch.no_grad()
def cross_reconstruction(universal: UniversalDictionary, x: Mapping[str, Tensor], batch: int = 4096) -> Tensor:
    """The matrix `R2_ij = 1 - sum ||x_j - Enc_i(x_i) D_j||^2 / sum ||x_j - mean x_j||^2` (arXiv 2502.03714).

    The mean is that of every coordinate; the released code takes one for all, which makes its numbers larger.

    Args:
        universal: of M models.
        x: activations `[N, d_i]` of the same tokens, for every model.
        batch: tokens at a time.

    Returns:
        `[M, M]`, float64, in the order of `universal`; row i encodes, column j is rebuilt.

    Raises:
        ValueError: for a missing model, or unequal numbers of tokens.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> pair = UniversalDictionary({"a": TopKDictionary(4, 8, k=2), "b": TopKDictionary(6, 8, k=2)})
        >>> cross_reconstruction(pair, {"a": torch.randn(9, 4), "b": torch.randn(9, 6)}).shape
        torch.Size([2, 2])
    """
    sizes = {name: len(values) for name, values in x.items()}
    if set(sizes) != set(universal) or len(set(sizes.values())) != 1:
        raise ValueError(f"Activations are of {sizes}; give the same tokens of each of {', '.join(universal)}.")
    names, n = list(universal), next(iter(sizes.values()))
    spread = torch.stack([(x[m].double() - x[m].double().mean(0)).square().sum() for m in names])
    error = torch.zeros(len(names), len(names), dtype=torch.double)
    for start in range(0, n, batch):
        here = {m: x[m][start : start + batch] for m in names}
        for i, codes in enumerate(universal.encode_sparse(here).values()):
            for j, m in enumerate(names):
                error[i, j] += (universal[m].decode(codes, like=here[m]) - here[m]).double().square().sum().cpu()
    return 1 - error / spread.cpu()
