"""Visual prompt tuning: learned tokens after the patches, in the first block or in many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, normal
from vlsae.adaptation.prompts import vision_prompts, width
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("vpt")
class VPT(Adaptation):
    """Prompts `P_0` join the first block's tokens and `P_i` replace them before block i < depth (arXiv 2203.12119, eq. 4-8).

    The text side stays as it is. Depth 1 is VPT-shallow.

    Args:
        base: any model with a vision tower of blocks.
        class_names: ignored; no head is bound to them.
        n_prompts: tokens that are added.
        depth: blocks with prompts of their own.
        seed: of the random start.
    """

    method, changes = "vpt", ("vision",)
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2.5e-3, "epochs": 5, "batch_size": 4}

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, n_prompts: int = 8, depth: int = 1,
                 seed: int = 0):  # fmt: skip
        super().__init__(n_prompts=n_prompts, depth=depth, seed=seed)
        blocks = len(base.blocks("vision"))
        if not 1 <= depth <= blocks or n_prompts < 1:
            raise ValueError(f"n_prompts={n_prompts}, depth={depth}: give a prompt or more, in 1 to {blocks} blocks.")
        self.n_prompts = n_prompts
        d = width(base, "vision")
        self.shallow = normal(seed, n_prompts, d)
        self.deep = nn.ParameterList(normal(seed + i, n_prompts, d) for i in range(1, depth))

    def vision(self, model: Backbone) -> AbstractContextManager:
        return vision_prompts(model, self.shallow, list(self.deep))
