"""CoCoOp: a learned context that a small network moves by what is in the image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, linear, normal
from vlsae.adaptation.prompts import PLACEHOLDER, WORDS, PromptedTexts, width
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head

TEXTS_AT_ONCE = 1024


class ConditionalHead(Head):
    """Logits of images with class embeddings of their own, `scale <x, g(ctx + h(x), class)>`.

    Images are taken a few at a time, so that no more than about `TEXTS_AT_ONCE` texts are encoded together.

    Args:
        model: whose text tower runs.
        texts: prompts with places for the context.
        context: `[n, d]`.
        condition: maps unit image embeddings `[B, e]` to what is added to every context vector, `[B, d]`.
    """

    def __init__(self, model: Backbone, texts: PromptedTexts, context: Tensor, condition: nn.Module):
        super().__init__()
        self.model, self.texts, self.context, self.condition = model, texts, context, condition

    def forward(self, embeddings: Tensor) -> Tensor:
        at_once = max(1, TEXTS_AT_ONCE // len(self.texts.positions))
        return torch.cat([self._some(part) for part in embeddings.to(self.context).split(at_once)])

    def _some(self, embeddings: Tensor) -> Tensor:
        weights = self.texts.encode_each(self.model, self.context + self.condition(embeddings)[:, None])
        return self.model.logit_scale * torch.einsum("be,bce->bc", embeddings, weights)


@ADAPTATIONS.register("cocoop")
class CoCoOp(Adaptation):
    """CoOp with contexts `v_m + h(x)` for an image x (Zhou et al., CVPR 2022, arXiv 2203.05557, eq. 3).

    `h = Linear(e, e // 16), ReLU, Linear(e // 16, d)` on the unit image embedding.

    Args:
        base: with a text tower.
        class_names: ignored; no head is bound to them.
        n_ctx: context vectors.
        words: start from the embeddings of these `n_ctx` words; random where "".
        seed: of the random start.

    Example:
        >>> from vlsae import load_model
        >>> CoCoOp(load_model("tiny")).meta_net.linear1
        Linear(in_features=192, out_features=12, bias=True)
    """

    method, changes = "cocoop", ("text",)
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2e-3, "epochs": 10, "batch_size": 1}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, n_ctx: int = 4, words: str = WORDS,
                 seed: int = 0):  # fmt: skip
        super().__init__(n_ctx=n_ctx, words=words, seed=seed)
        if words and len(words.split()) != n_ctx:
            raise ValueError(f"words={words!r} are {len(words.split())} words, but n_ctx={n_ctx}; make them equal.")
        d = width(base, "text")
        start = self._texts(base, [PLACEHOLDER]).word_vectors(base).float() if words else normal(seed, n_ctx, d)
        self.ctx = nn.Parameter(start)
        e = base.encode_text([PLACEHOLDER]).shape[1]
        hidden = max(1, e // 16)
        self.meta_net = nn.Sequential(OrderedDict(linear1=linear(e, hidden, seed), relu=nn.ReLU(),
                                                  linear2=linear(hidden, d, seed + 1)))  # fmt: skip

    def _texts(self, model: Backbone, class_names: Sequence[str]) -> PromptedTexts:
        return PromptedTexts(model, class_names, self.settings["n_ctx"], self.settings["words"] or None)

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        return ConditionalHead(model, self._texts(model, class_names), self.ctx, self.meta_net)
