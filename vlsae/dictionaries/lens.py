"""Maps that carry every layer's activations into the basis of one."""

from __future__ import annotations

import torch
from torch import Tensor


class LensMap:
    """`h_l -> h_l + h_l A_l + b_l`, the ridge regression of a target layer on layer l (arXiv 2409.04185).

    The paper uses tuned lenses, trained on the model's predictions; this is their counterpart where a model has none.

    Args:
        A: `[L, d, d]`; b: `[L, d]`.

    Example:
        >>> x = torch.randn(50, 3, 4)
        >>> lens = LensMap.fit(x, ridge=1e-6)
        >>> torch.allclose(lens(x)[:, -1], x[:, -1], atol=1e-4)
        True
    """

    def __init__(self, A: Tensor, b: Tensor):
        if A.ndim != 3 or A.shape[1] != A.shape[2] or b.shape != A.shape[:2]:
            raise ValueError(f"A is {tuple(A.shape)} and b {tuple(b.shape)}; give [L, d, d] and [L, d].")
        self.A, self.b = A, b

    @classmethod
    def fit(cls, x: Tensor, target: int = -1, ridge: float = 1e-3) -> LensMap:
        """The map to a layer of `x [N, L, d]` that minimises `||h_l + h_l A + b - h_target||^2 / N + ridge ||A||^2`.

        Raises:
            ValueError: for another shape, or a ridge that is not positive.
        """
        if x.ndim != 3 or not ridge > 0:
            raise ValueError(f"x has shape {tuple(x.shape)} and ridge is {ridge}; give [N, L, d] and a positive ridge.")
        x = x.double()
        mean = x.mean(0)
        centred = (x - mean).transpose(0, 1)
        change = centred[target] - centred
        gram = centred.mT @ centred / len(x) + ridge * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        A = torch.linalg.solve(gram, centred.mT @ change / len(x))
        b = mean[target] - mean - (mean[:, None] @ A)[:, 0]
        return cls(A.float(), b.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Every layer in the target's basis, `[N, L, d]` to `[N, L, d]`."""
        return x + torch.einsum("nld,lde->nle", x, self.A) + self.b

    def inverse(self, y: Tensor) -> Tensor:
        """Back to every layer's own basis, `[N, L, d]`; a least-squares one where a map has no inverse."""
        eye = torch.eye(self.A.shape[1], dtype=self.A.dtype, device=self.A.device)
        return torch.einsum("nld,lde->nle", y - self.b, torch.linalg.pinv(eye + self.A))
