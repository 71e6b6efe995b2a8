"""Linear probe: a logistic regression on frozen image embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, bound_classes, embedding_width
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head, LinearHead


@ADAPTATIONS.register("linear_probe")
class LinearProbe(Adaptation):
    """Logits `x W^T + b` that minimise `||W||^2 / 2 + C sum_n CE(x_n W^T + b, y_n)` over unit embeddings x.

    The probe of CLIP (arXiv 2103.00020, section 3.2), fitted to its optimum, so there is nothing else to train.

    Args:
        base: whose embeddings it takes.
        class_names: the classes it is bound to.
        C: weight of the images against the penalty, above 0.

    Raises:
        ValueError: without classes, for a `C` of 0 or less, or where a class has no image.
    """

    method, changes = "linear_probe", ("head",)
    recipe: ClassVar = {"epochs": 0}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, C: float = 10.0):
        classes = bound_classes(self.method, class_names)
        super().__init__(classes, C=C)
        if not C > 0:
            raise ValueError(f"C={C} must be above 0; it is the weight of the images against the penalty.")
        self.register_buffer("weight", torch.zeros(len(classes), embedding_width(base)))
        self.register_buffer("bias", torch.zeros(len(classes)))

    def prepare(self, features: Tensor, labels: Tensor) -> None:
        absent = sorted(set(range(len(self.class_names))) - set(labels.tolist()))
        if absent:
            raise ValueError(
                f"No training image shows {self.class_names[absent[0]]!r}; a probe needs some of every class."
            )
        weight, bias = logistic_regression(
            F.normalize(features, dim=-1), labels, len(self.class_names), self.settings["C"]
        )
        self.weight, self.bias = weight.to(self.weight), bias.to(self.bias)

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        self.require_classes(class_names)
        return LinearHead(self.weight, bias=self.bias)


@torch.enable_grad()
def logistic_regression(x: Tensor, labels: Tensor, n_classes: int, C: float) -> tuple[Tensor, Tensor]:
    """The minimum of `||W||^2 / 2 + C sum_n CE(x_n W^T + b, y_n)` by L-BFGS in double precision.

    Args:
        x: `[N, e]`; labels: `[N]`, every class among them.
        n_classes: of the labels.
        C: weight of the rows.

    Returns:
        W `[C, e]` and b `[C]`, which sums to 0.

    Example:
        >>> W, b = logistic_regression(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2, 1.0)
        >>> torch.allclose(W[0], -W[1]), bool(W[0] > 0)
        (True, True)
    """
    x = x.detach().double()
    weight = torch.zeros(n_classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=5000, tolerance_grad=1e-9, tolerance_change=0, history_size=20,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def objective() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + weight.square().sum() / (2 * C * len(x))
        value.backward()
        return value

    search.step(objective)
    return weight.detach(), bias.detach()
