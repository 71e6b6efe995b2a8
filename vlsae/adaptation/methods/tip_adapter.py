"""Tip-Adapter: a cache of the training images' embeddings and labels beside the zero-shot classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, bound_classes, embedding_width, text_classifier
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head, LinearHead


class CacheHead(Head):
    """Logits `s x W^T + alpha exp(-beta (1 - x K^T)) V`.

    Args:
        zero_shot: gives the first term.
        keys: K `[N, e]`; values: V `[N, C]`.
        alpha, beta: weight of the cache, and how quickly it fades with distance.
    """

    def __init__(self, zero_shot: LinearHead, keys: Tensor, values: Tensor, alpha: float, beta: float):
        super().__init__()
        self.zero_shot, self.keys, self.values = zero_shot, keys, values
        self.alpha, self.beta = alpha, beta

    def forward(self, embeddings: Tensor) -> Tensor:
        distance = 1 - F.linear(embeddings.to(self.keys), self.keys)
        return self.zero_shot(embeddings) + self.alpha * torch.exp(-self.beta * distance) @ self.values


@ADAPTATIONS.register("tip_adapter")
class TipAdapter(Adaptation):
    """Logits `s x W^T + alpha exp(-beta (1 - x K^T)) V`, with nothing to train (ECCV 2022, arXiv 2207.09519, eq. 3 to 6).

    K are the training images' unit embeddings, V their labels as one-hot rows, W the classes' text embeddings and s the
    model's logit scale. An empty cache is zero-shot classification.

    Args:
        base: with a text tower.
        class_names: the classes it is bound to.
        alpha: weight of the cache.
        beta: how quickly a key's vote fades with distance.
        cache_size: training images, known once there are some.

    Raises:
        ValueError: without classes.
    """

    method, changes = "tip_adapter", ("head",)
    recipe: ClassVar = {"epochs": 0}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, alpha: float = 1.0, beta: float = 5.5,
                 cache_size: int = 0):  # fmt: skip
        classes = bound_classes(self.method, class_names)
        super().__init__(classes, alpha=alpha, beta=beta, cache_size=cache_size)
        self._remember(torch.zeros(cache_size, embedding_width(base)), torch.zeros(cache_size, len(classes)))

    def _remember(self, keys: Tensor, values: Tensor) -> None:
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)

    def prepare(self, features: Tensor, labels: Tensor) -> None:
        self.settings["cache_size"] = len(features)
        self._remember(F.normalize(features, dim=-1), F.one_hot(labels, len(self.class_names)).to(features))

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        self.require_classes(class_names)
        zero_shot = LinearHead(text_classifier(model, class_names, templates), model.logit_scale)
        return CacheHead(zero_shot, self.keys, self.values, self.settings["alpha"], self.settings["beta"])


@ADAPTATIONS.register("tip_adapter_f")
class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are trained from there; they are not kept at unit length (section 3.2).

    Args:
        base, class_names, alpha, beta, cache_size: as in `TipAdapter`.
    """

    method = "tip_adapter_f"
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "epochs": 20, "batch_size": 256,
                        "warm_up_lr": 0.0}  # fmt: skip

    def _remember(self, keys: Tensor, values: Tensor) -> None:
        self.keys = nn.Parameter(keys)
        self.register_buffer("values", values)
