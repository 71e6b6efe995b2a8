"""KgCoOp: CoOp whose class embeddings are held near those of a hand-written prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adaptation import ADAPTATIONS, TuningBatch
from vlsae.adaptation.methods.coop import CoOp
from vlsae.adaptation.prompts import WORDS
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("kgcoop")
class KgCoOp(CoOp):
    """CoOp with `weight * mean_c (1 - cos(w_c, w_c^clip))` added to its loss (CVPR 2023, arXiv 2303.13283, sec. 3.2).

    The paper writes `||w_c - w_c^clip||^2`, which is twice `1 - cos` for unit vectors; its released code, and this, use
    `1 - cos` with weight 8. The hand-written prompts `w^clip` are the templates of `adapt`.

    Args:
        base: with a text tower.
        class_names: as for CoOp.
        weight: of the distance to the hand-written prompts.
        n_ctx: context vectors.
        words: to start from; random where "".
        **options: `class_specific`, `position` and `seed` of CoOp.

    Example:
        >>> from vlsae import load_model
        >>> KgCoOp(load_model("tiny")).settings["weight"]
        8.0
    """

    method = "kgcoop"
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2e-3, "epochs": 100, "batch_size": 128}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, weight: float = 8.0, n_ctx: int = 4,
                 words: str = WORDS, **options: Any):  # fmt: skip
        super().__init__(base, class_names, n_ctx=n_ctx, words=words, **options)
        self.settings["weight"] = weight

    def loss(self, model: Backbone, batch: TuningBatch) -> Tensor:
        head = self.head(model, batch.class_names, batch.templates)
        distance = 1 - (head.weight * self.frozen_classifier(model, batch)).sum(-1).mean()
        return F.cross_entropy(head(batch.features), batch.labels) + self.settings["weight"] * distance
