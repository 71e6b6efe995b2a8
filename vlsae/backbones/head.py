"""The last step of a classifier: image embeddings to class logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """Turns unit image embeddings `[N, e]` into logits `[N, C]`; the same for every model, base or adapted."""

    def forward(self, embeddings: Tensor) -> Tensor:
        raise NotImplementedError


class LinearHead(Head):
    """Logits that are linear in the image embedding: `scale x W^T + b`.

    Args:
        weight: `[C, e]`; one unit text embedding a class in zero-shot classification.
        scale: what similarities are multiplied by.
        bias: `[C]`, or None.

    Example:
        >>> import torch
        >>> LinearHead(torch.eye(3)[:2], 10.0)(torch.eye(3)).argmax(1)[:2]
        tensor([0, 1])
    """

    def __init__(self, weight: Tensor, scale: float | Tensor = 1.0, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self.scale * F.linear(embeddings.to(self.weight), self.weight)
        return logits if self.bias is None else logits + self.bias
