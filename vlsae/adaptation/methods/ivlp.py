"""Independent prompts of both towers: vision prompts and deep text prompts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, normal
from vlsae.adaptation.prompts import PLACEHOLDER, WORDS, PromptedTexts, prompt_depth, vision_prompts, width
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head, LinearHead


@ADAPTATIONS.register("ivlp")
class IVLP(Adaptation):
    """Deep prompts of both towers that know nothing of each other (arXiv 2210.03117 sec. 3.2; 2307.06948 sec. 3.1).

    Text prompts take the first places of "a photo of a", vision prompts stand after the patches; before block i < depth
    both are replaced.

    Args:
        base: with a text tower.
        class_names: ignored; no head is bound to them.
        n_ctx: text prompts a block, 1 to 4.
        n_prompts: vision prompts a block.
        text_depth, vision_depth: blocks with prompts of their own; 9 (as published) or all where None.
        seed: of the random start.

    Raises:
        ValueError: for a depth that a tower does not have, or numbers of prompts out of range.

    Example:
        >>> from vlsae import load_model
        >>> len(IVLP(load_model("tiny"), vision_depth=3).deep)
        2
    """

    method, changes = "ivlp", ("vision", "text")
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2.5e-3, "epochs": 20, "batch_size": 4}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, n_ctx: int = 4, n_prompts: int = 4,
                 text_depth: int | None = None, vision_depth: int | None = None, seed: int = 0):  # fmt: skip
        text_depth, vision_depth = prompt_depth(base, text_depth, "text"), prompt_depth(base, vision_depth, "vision")
        super().__init__(n_ctx=n_ctx, n_prompts=n_prompts, text_depth=text_depth, vision_depth=vision_depth, seed=seed)
        if not 1 <= n_ctx <= len(WORDS.split()) or n_prompts < 1:
            raise ValueError(f"n_ctx={n_ctx}, n_prompts={n_prompts}: give 1 to 4 text prompts, which take the places of "
                             f"words of {WORDS!r}, and one vision prompt or more.")  # fmt: skip
        self.n_prompts = n_prompts
        d_text, d_vision = width(base, "text"), width(base, "vision")
        self.ctx = nn.Parameter(self._texts(base, [PLACEHOLDER]).word_vectors(base).float())
        self.deep_ctx = nn.ParameterList(normal(seed + i, n_ctx, d_text) for i in range(1, text_depth))
        self.shallow = normal(seed, n_prompts, d_vision)
        self.deep = nn.ParameterList(normal(seed + i, n_prompts, d_vision) for i in range(1, vision_depth))

    def _texts(self, model: Backbone, class_names: Sequence[str]) -> PromptedTexts:
        return PromptedTexts(model, class_names, self.settings["n_ctx"], WORDS)

    def vision(self, model: Backbone) -> AbstractContextManager:
        return vision_prompts(model, self.shallow, list(self.deep))

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        weight = self._texts(model, class_names).encode(model, self.ctx, list(self.deep_ctx))
        return LinearHead(weight, model.logit_scale)
