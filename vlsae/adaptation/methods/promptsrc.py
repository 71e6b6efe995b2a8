"""PromptSRC: independent prompts that the frozen model, and their own past, hold in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adaptation import ADAPTATIONS, TuningBatch
from vlsae.adaptation.methods.ivlp import IVLP
from vlsae.backbones.base import Backbone


@ADAPTATIONS.register("promptsrc")
class PromptSRC(IVLP):
    """IVLP with self-regularisation (Khattak et al., ICCV 2023, arXiv 2307.06948, sec. 3.2).

    The loss is `CE + image_weight |x - x^0| + text_weight |w - w^0| + KL(p^0 || p)` with the frozen model's unit image
    embeddings x^0, class embeddings w^0 (the mean over the templates of `adapt`, of which many help) and
    probabilities p^0. Absolute values are means over all entries; so is the KL divergence, over images and classes, as
    in the released code. At the end the learned tensors become an average over epochs t = 1 ... T with weights
    proportional to `exp(-(t - mean T)^2 / 2 (std T)^2)`.

    Args:
        base: with a text tower.
        class_names: ignored; no head is bound to them.
        image_weight, text_weight: of the distances to the frozen embeddings.
        mean, std: of the Gaussian over epochs, as fractions of their number; the published 15 and 1 of 20.
        **options: of IVLP.

    Raises:
        ValueError: as IVLP, or for a `std` that is not positive.

    Example:
        >>> from vlsae import load_model
        >>> int(PromptSRC(load_model("tiny")).epoch_weights(20).argmax()) + 1
        15
    """

    method = "promptsrc"

    def __init__(self, base: Backbone, class_names: Sequence[str] | None = None, *, image_weight: float = 10.0,
                 text_weight: float = 25.0, mean: float = 0.75, std: float = 0.05, **options: Any):  # fmt: skip
        super().__init__(base, class_names, **options)
        if not std > 0:
            raise ValueError(f"std={std}; give the Gaussian over epochs a positive width.")
        self.settings |= {"image_weight": image_weight, "text_weight": text_weight, "mean": mean, "std": std}

    def loss(self, model: Backbone, batch: TuningBatch) -> Tensor:
        images = F.normalize(model.forward_image(batch.pixels), dim=-1)
        head = self.head(model, batch.class_names, batch.templates)
        logits = head(images)
        return F.cross_entropy(logits, batch.labels) + self.regulariser(model, batch, images, head.weight, logits)

    def regulariser(self, model: Backbone, batch: TuningBatch, images: Tensor, texts: Tensor, logits: Tensor) -> Tensor:
        """What holds unit image embeddings `[B, e]`, class embeddings `[C, e]` and logits `[B, C]` near the frozen ones."""
        frozen_texts = self.frozen_classifier(model, batch)
        with torch.no_grad():
            frozen_images = F.normalize(model.original.forward_image(batch.pixels), dim=-1)
            frozen_logits = model.logit_scale * frozen_images @ frozen_texts.T
        kl = F.kl_div(logits.log_softmax(-1), frozen_logits.log_softmax(-1), reduction="none", log_target=True).mean()
        return (
            self.settings["image_weight"] * F.l1_loss(images, frozen_images)
            + self.settings["text_weight"] * F.l1_loss(texts, frozen_texts)
            + kl
        )

    @torch.no_grad()
    def after_epoch(self, epoch: int, epochs: int) -> None:
        if epoch == 1:
            self._average = [torch.zeros_like(p) for p in self.parameters()]
        for total, p in zip(self._average, self.parameters(), strict=True):
            total += self.epoch_weights(epochs)[epoch - 1].to(p.device) * p
        if epoch == epochs:
            for total, p in zip(self.__dict__.pop("_average"), self.parameters(), strict=True):
                p.copy_(total)

    def epoch_weights(self, epochs: int) -> Tensor:
        """Weights `[epochs]` of the average; they sum to 1."""
        t = torch.arange(1, epochs + 1, dtype=torch.float64)
        mean, std = self.settings["mean"] * epochs, self.settings["std"] * epochs
        return torch.softmax(-0.5 * ((t - mean) / std) ** 2, 0).float()
