"""CoOp: learned context vectors in front of the class name; the image side stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, normal
from vlsae.adaptation.prompts import PLACEHOLDER, PromptedTexts, width
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head, LinearHead


@ADAPTATIONS.register("coop")
class CoOp(Adaptation):
    """Class embeddings `g([v_1] ... [v_n] [class].)` with learned v (Zhou et al., IJCV 2022, arXiv 2109.01134, eq. 2).

    Args:
        base: with a text tower.
        class_names: classes it is trained on; only class-specific contexts are bound to them.
        n_ctx: context vectors.
        words: start from the embeddings of these words, of which there must be `n_ctx`; random where "".
        class_specific: a context of its own for every class.
        position: "end", "middle" or "front": where the class name stands.
        seed: of the random start.
    """

    method, changes = "coop", ("text",)
    recipe: ClassVar = {"optimizer": "sgd", "lr": 2e-3, "epochs": 50, "batch_size": 32}

    def __init__(
        self, base: Backbone, class_names: Sequence[str] | None = None, *, n_ctx: int = 16, words: str = "",
        class_specific: bool = False, position: str = "end", seed: int = 0,
    ):  # fmt: skip
        super().__init__(class_names if class_specific else None, n_ctx=n_ctx, words=words,
                         class_specific=class_specific, position=position, seed=seed)  # fmt: skip
        if words and len(words.split()) != n_ctx:
            raise ValueError(f"words={words!r} are {len(words.split())} words, but n_ctx={n_ctx}; make them equal.")
        if words:
            start = self._texts(base, class_names or [PLACEHOLDER]).word_vectors(base).float()
            self.ctx = nn.Parameter(start.repeat(len(class_names), 1, 1) if class_specific else start)
        else:
            shape = (n_ctx, width(base, "text"))
            self.ctx = normal(seed, *((len(class_names), *shape) if class_specific else shape))

    def _texts(self, model: Backbone, class_names: Sequence[str]) -> PromptedTexts:
        options = self.settings
        return PromptedTexts(model, class_names, options["n_ctx"], options["words"] or None, options["position"])

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        self.require_classes(class_names)
        return LinearHead(self._texts(model, class_names).encode(model, self.ctx), model.logit_scale)
