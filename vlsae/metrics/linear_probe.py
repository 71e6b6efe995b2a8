"""A logistic probe: the direction along which a concept can be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LinearProbe:
    """A direction and a threshold, `score = <x, weight> + bias`; above 0 the concept is said to be there.

    Attributes:
        weight: `[d]`, float64.
        bias: of the score.
    """

    weight: Tensor
    bias: float

    @property
    def direction(self) -> Tensor:
        """`weight` at unit length."""
        return F.normalize(self.weight, dim=0)

    def score(self, x: Tensor) -> Tensor:
        """`[n]` of activations `[n, d]`."""
        return x.detach().double() @ self.weight.to(x.device) + self.bias


def check_labelled(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless `x [n, d]` is finite and the labels `y [n]` hold both 0 and 1, and nothing else."""
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"Rows are {list(x.shape)} and labels {list(y.shape)}; give [n, d] and one label a row, [n].")
    if not torch.isfinite(x).all():
        raise ValueError("Rows hold NaN or infinite values; leave these out, or extract with float32.")
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(f"Labels hold {sorted(set(y.tolist()))[:5]}; give bool, or 0 and 1.")
    n = int((y == 1).sum())
    if n in (0, len(y)):
        raise ValueError(f"{n} of {len(y)} labels are positive; a concept needs rows with it and rows without it.")


def linear_probe(x: Tensor, y: Tensor, *, C: float = 1.0) -> LinearProbe:
    """Fit a logistic regression, `min_{w, b} ||w||^2 / 2 + C sum_n log(1 + exp(-s_n (<w, x_n> + b)))`, `s = 2 y - 1`.

    The probe of Chanin et al. 2024 (arXiv 2409.14507), by scikit-learn. The penalty counts in the units of `x`: for
    embeddings of unit length take a larger `C`.

    Args:
        x: activations `[n, d]`.
        y: bool `[n]`, where the concept is there; both values present.
        C: weight of the rows against the penalty, above 0.

    Returns:
        A `LinearProbe`.

    Raises:
        ValueError: for NaN, labels of one class or other shapes, or `C` of 0 or less.

    Example:
        >>> probe = linear_probe(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.tensor([True, False]))
        >>> probe.direction.abs().round(decimals=3).tolist()
        [1.0, 0.0]
    """
    from sklearn.linear_model import LogisticRegression

    check_labelled(x, y)
    if C <= 0:
        raise ValueError(f"C={C} must be above 0; it is the weight of the rows against the penalty.")
    model = LogisticRegression(C=C, max_iter=2000).fit(x.detach().double().cpu().numpy(), y.cpu().numpy() == 1)
    return LinearProbe(torch.from_numpy(model.coef_[0].copy()), float(model.intercept_[0]))
