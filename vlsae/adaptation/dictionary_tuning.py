"""Adapt the model to a frozen dictionary: low-rank updates behind the site where it is spliced in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.lora import TARGETS
from vlsae.adaptation.methods.lora import LoRAAdaptation
from vlsae.adaptation.tuning import only_training
from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.zero_shot import splice

OBJECTIVES = ("zeroshot_kl", "embedding_mse")


@dataclass(frozen=True)
class DictionaryTuning:
    """A model adapted to a dictionary, and its mean loss on the images before and after (the base's own is 0)."""

    model: AdaptedBackbone
    spliced: float
    adapted: float

    @property
    def gap(self) -> float:
        """`gap_closed(0, spliced, adapted)`."""
        return gap_closed(0.0, self.spliced, self.adapted)


def gap_closed(base: float, spliced: float, adapted: float) -> float:
    """`1 - (L_adapted - L_base) / (L_spliced - L_base)`: 1 where nothing is lost, 0 where nothing is won.

    Example:
        >>> gap_closed(1.0, 3.0, 1.5)
        0.75
    """
    return 1.0 if spliced == base else 1 - (adapted - base) / (spliced - base)


def match_loss(embedding: Tensor, teacher: Tensor, objective: str, classes: Tensor | None, scale: float) -> Tensor:
    """Mean over images of `KL(p_base || p)` over the classes, or of the squared distance of unit embeddings.

    Args:
        embedding, teacher: unit, `[B, e]`; classes: unit, `[C, e]`; scale: of the logits.
    """
    if objective == "embedding_mse":
        return (embedding - teacher).square().sum(1).mean()
    log_p, log_q = ((scale * x @ classes.T).log_softmax(1) for x in (teacher, embedding))
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def adapt_to_dictionary(
    model: Backbone, dictionary: Dictionary, images, site: str | None = None, *, objective: str = "zeroshot_kl",
    class_names: Sequence[str] | None = None, rank: int = 64, alpha: float = 32.0, steps: int = 100, batch_size: int = 16,
    lr: float = 5e-5, replace: Sequence[str] = ("patch",), seed: int = 0, progress: bool = True,
) -> DictionaryTuning:  # fmt: skip
    """LoRA on the blocks behind a site, so that the model with the dictionary spliced in does what it did without.

    `W' = W + (alpha / rank) B A`, gradients clipped to norm 1, AdamW (Chen et al. 2025, arXiv 2501.19406); model and
    dictionary stay frozen.

    Args:
        model: the base.
        dictionary: of its vision tokens; site: where, the dictionary's own where None.
        images: sequence of images or scenes.
        objective: "zeroshot_kl" (needs `class_names`) or "embedding_mse".
        rank, alpha: of the updates; steps, batch_size, lr, seed: of the training.
        replace: roles of the tokens that are replaced.
        progress: show a progress bar.

    Raises:
        ValueError: for an unknown objective, missing class names, or a site with no block behind it.
        FloatingPointError: when the loss is not finite.
    """
    if objective not in OBJECTIVES or (objective == "zeroshot_kl" and not class_names):
        raise ValueError(f"objective={objective!r}, class_names={class_names}: use 'embedding_mse', or 'zeroshot_kl' "
                         "with class names.")  # fmt: skip
    place, n_blocks = Site.parse(dictionary_site(dictionary, site)), len(model.blocks("vision"))
    first = n_blocks if place.block is None else place.resolve(n_blocks).block + (place.stream != "resid_pre")
    if place.tower != "vision" or first >= n_blocks:
        raise ValueError(f"No block of the vision tower comes after {place}; choose an earlier site.")
    lora = LoRAAdaptation(model, targets=TARGETS, towers=("vision",), blocks=range(first, n_blocks), rank=rank,
                          alpha=alpha, scaling="peft", seed=seed)  # fmt: skip
    adapted = AdaptedBackbone(model, lora.to(model.device))
    classes = model.classifier(class_names) if objective == "zeroshot_kl" else None
    edit = splice(dictionary, model.token_roles, replace, "spliced")

    def loss(rows: Sequence[int]) -> Tensor:
        pixels = model.pixels([images[i] for i in rows])
        with torch.no_grad():
            teacher = F.normalize(model.forward_image(pixels).float(), dim=-1)
        with adapted.edit(place, edit):
            student = F.normalize(adapted.forward_image(pixels).float(), dim=-1)
        return match_loss(student, teacher, objective, classes, model.logit_scale)

    before = _mean(loss, len(images), batch_size)
    parameters = list(lora.parameters())
    optimizer = torch.optim.AdamW(parameters, lr)
    order = torch.Generator().manual_seed(seed)
    with only_training(adapted, parameters):
        for step in tqdm(range(steps), desc="adapt to dictionary", disable=not progress):
            value = loss(torch.randperm(len(images), generator=order)[:batch_size].tolist())
            if not torch.isfinite(value):
                raise FloatingPointError(f"The loss became {value.item()} at step {step}; lower lr={lr}.")
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return DictionaryTuning(adapted, before, _mean(loss, len(images), batch_size))


@torch.no_grad()
def _mean(loss: Callable[[Sequence[int]], Tensor], n: int, batch_size: int) -> float:
    parts = [range(n)[start : start + batch_size] for start in range(0, n, batch_size)]
    return sum(float(loss(rows)) * len(rows) for rows in parts) / n
