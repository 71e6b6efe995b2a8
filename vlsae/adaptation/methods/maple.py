"""MaPLe: deep prompts of the text tower, and prompts of the vision tower that are linear maps of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, linear, normal
from vlsae.adaptation.prompts import PLACEHOLDER, WORDS, PromptedTexts, prompt_depth, vision_prompts, width
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head, LinearHead


@ADAPTATIONS.register("maple")
class MaPLe(Adaptation):
    """Prompts `P_i` of the text tower and `F_i(P_i)` of the vision tower, i < depth (CVPR 2023, arXiv 2210.03117, sec. 3.2).

    `P_0` takes the first `n_ctx` places of "a photo of a", whose other words stay, so that texts read
    `[P_0] of a [class].`; before text block i it is replaced by `P_i`. `F_i` is a linear map from the text tower's width to
    the vision tower's; its outputs stand after the patches and are replaced before vision block i.

    Args:
        base: with a text tower.
        class_names: ignored; no head is bound to them.
        n_ctx: prompts a block, 1 to 4.
        depth: blocks with prompts of their own; the smaller of 9 (as published) and what both towers have where None.
        seed: of the random start.

    Raises:
        ValueError: for a depth that the towers do not have, or more prompts than words.

    Example:
        >>> from vlsae import load_model
        >>> sorted(MaPLe(load_model("tiny"), depth=1).state_dict())
        ['ctx', 'proj.bias', 'proj.weight']
    """

    method, changes = "maple", ("vision", "text")
    recipe: ClassVar = {"optimizer": "sgd", "lr": 3.5e-3, "epochs": 5, "batch_size": 4}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, n_ctx: int = 2, depth: int | None = None,
                 seed: int = 0):  # fmt: skip
        depth = prompt_depth(base, depth, "vision", "text")
        super().__init__(n_ctx=n_ctx, depth=depth, seed=seed)
        if not 1 <= n_ctx <= len(WORDS.split()):
            raise ValueError(f"n_ctx={n_ctx}; MaPLe's prompts take the places of 1 to 4 words of {WORDS!r}.")
        self.n_prompts = n_ctx
        d_text, d_vision = width(base, "text"), width(base, "vision")
        self.ctx = nn.Parameter(self._texts(base, [PLACEHOLDER]).word_vectors(base).float())
        self.proj = linear(d_text, d_vision, seed)
        self.compound_prompts_text = nn.ParameterList(normal(seed + i, n_ctx, d_text) for i in range(1, depth))
        self.compound_prompt_projections = nn.ModuleList(linear(d_text, d_vision, seed + i) for i in range(1, depth))

    def _texts(self, model: Backbone, class_names: Sequence[str]) -> PromptedTexts:
        return PromptedTexts(model, class_names, self.settings["n_ctx"], WORDS)

    def vision(self, model: Backbone) -> AbstractContextManager:
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return vision_prompts(model, self.proj(self.ctx), [project(prompt) for project, prompt in pairs])

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        weight = self._texts(model, class_names).encode(model, self.ctx, list(self.compound_prompts_text))
        return LinearHead(weight, model.logit_scale)
