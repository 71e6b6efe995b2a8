"""CLIP-Adapter: a small residual network on the image embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, embedding_width
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("clip_adapter")
class CLIPAdapter(Adaptation):
    """Embeddings `r ReLU(U ReLU(D x)) + (1 - r) x` (Gao et al., IJCV 2024, arXiv 2110.04544, eq. 3 and 5; image side).

    There are no biases, so `x` may have any length: the result's is proportional to it, its direction the same.

    Args:
        base: whose embeddings it takes.
        class_names: ignored; no head is bound to them.
        ratio: r, from 0 (nothing changes) to 1.
        reduction: D is `[e / reduction, e]`.
        seed: of the random start.
    """

    method, changes = "clip_adapter", ("head",)
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2e-3, "epochs": 200, "batch_size": 32}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, ratio: float = 0.2,
                 reduction: int = 4, seed: int = 0):  # fmt: skip
        super().__init__(ratio=ratio, reduction=reduction, seed=seed)
        e = embedding_width(base)
        if not 0 <= ratio <= 1 or not 1 <= reduction <= e:
            raise ValueError(
                f"ratio={ratio}, reduction={reduction}: give a ratio in [0, 1], a reduction from 1 to {e}."
            )
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.empty(e // reduction, e))
        self.up = nn.Parameter(torch.empty(e, e // reduction))
        for weight in (self.down, self.up):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def image(self, features: Tensor) -> Tensor:
        ratio = self.settings["ratio"]
        learned = F.relu(F.linear(F.relu(F.linear(features, self.down)), self.up))
        return ratio * learned + (1 - ratio) * features
