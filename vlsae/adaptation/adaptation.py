"""What every adaptation method is: a few learned parameters and the places of a frozen CLIP where they act."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.adaptation.prompts import clean_name
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.head import Head, LinearHead
from vlsae.registry import Registry

ADAPTATIONS = Registry("adaptation method", "vlsae.adaptation.methods")


@dataclass(frozen=True)
class TuningBatch:
    """What one step of tuning sees.

    Attributes:
        labels: int64 `[B]`, numbers in `class_names`.
        class_names: of the classes that are trained on.
        templates: prompts with one `{}`, for methods that keep the text side.
        features: unit image embeddings of the base model, `[B, e]`; None where the method changes the vision tower.
        pixels: model input `[B, 3, H, W]`; None where `features` do.
    """

    labels: Tensor
    class_names: Sequence[str]
    templates: Sequence[str]
    features: Tensor | None = None
    pixels: Tensor | None = None


class Adaptation(nn.Module):
    """Learned parts of a frozen CLIP. A method is one file with a sub-class under `@ADAPTATIONS.register("name")`.

    The constructor takes `(base, class_names, **settings)`: the frozen `Backbone`, the classes it will be trained on
    (methods that are not bound to classes ignore them), and keyword settings with defaults, which it stores in
    `self.settings` so that `load_adapted` can build the same module again before it loads the tensors.

    Attributes:
        method: its registered name.
        changes: which parts of the model differ afterwards: some of "vision" (the tower, and so its tokens), "text" and
            "head" (all that follows the tower's image embedding).
        recipe: published fields of `TuningConfig`.
        settings: constructor keywords, plain JSON values.
        class_names: the classes a head is bound to, in order; None where any class can be asked for.
        n_prompts: tokens that it appends to those of an image.
    """

    method: ClassVar[str]
    changes: ClassVar[tuple[str, ...]]
    recipe: ClassVar[dict[str, Any]] = {}

    def __init__(self, class_names: Sequence[str] | None = None, **settings: Any):
        super().__init__()
        self.settings = settings
        self.class_names = tuple(class_names) if class_names is not None else None
        self.n_prompts = 0

    def prepare(self, features: Tensor, labels: Tensor) -> None:
        """Start from the training images' unit embeddings `[N, e]` and labels `[N]`; caches and probes do."""

    def attach(self, model: Backbone) -> None:
        """Put learned weights in place of the model's own, once; `model` is a copy that shares its tensors."""

    def vision(self, model: Backbone) -> AbstractContextManager:
        """The hooks in force while `model`'s vision tower runs."""
        return nullcontext()

    def image(self, features: Tensor) -> Tensor:
        """Image embeddings `[B, e]` after the tower, on to what is compared with texts."""
        return features

    def head(self, model: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Head:
        """Image embeddings to logits of these classes, with gradients."""
        return LinearHead(text_classifier(model, class_names, templates), model.logit_scale)

    def loss(self, model: Backbone, batch: TuningBatch) -> Tensor:
        """Mean cross-entropy of a batch; methods that regularise add to it."""
        return F.cross_entropy(self.logits(model, batch), batch.labels)

    def after_step(self, step: int, total: int) -> None:
        """Called after each of `total` steps of the optimiser."""

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Called after epoch 1, 2, ... `epochs`; averages of weights are kept here."""

    def logits(self, model: Backbone, batch: TuningBatch) -> Tensor:
        """Class logits `[B, C]` of a batch, with gradients."""
        found = model.forward_image(batch.pixels) if batch.features is None else self.image(batch.features)
        return self.head(model, batch.class_names, batch.templates)(F.normalize(found, dim=-1))

    @torch.no_grad()
    def frozen_classifier(self, model: Backbone, batch: TuningBatch) -> Tensor:
        """The base model's own class embeddings `[C, e]` from a batch's templates, kept for the next batch."""
        asked = (tuple(batch.class_names), tuple(batch.templates))
        if self.__dict__.get("_frozen", (None,))[0] != asked:
            self._frozen = (asked, text_classifier(model.original, *asked))
        return self._frozen[1]

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Raise where a head is bound to other classes than those asked for."""
        if self.class_names is not None and [*map(clean_name, class_names)] != [*map(clean_name, self.class_names)]:
            raise ValueError(
                f"This {self.method} was trained on the {len(self.class_names)} classes {_some(self.class_names)} and "
                f"knows no others; asked for were {len(class_names)}: {_some(class_names)}. Give the same classes in the "
                "same order, or use a method that is not bound to classes."
            )


def check_templates(templates: Sequence[str]) -> None:
    """Raise where templates are no list of prompts with a place for the class name."""
    wrong = [templates] if isinstance(templates, str) else [t for t in templates if t.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(
            f"templates={templates!r} were given; give a list of prompts, each with one {{}} for the class name."
        )


def text_classifier(
    model: Backbone, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES
) -> Tensor:
    """`Backbone.classifier` with gradients: unit mean over templates of unit text embeddings, `[C, e]`."""
    texts = [[template.format(name) for name in class_names] for template in templates]
    return F.normalize(sum(F.normalize(model.forward_texts(t).float(), dim=-1) for t in texts), dim=-1)


def bound_classes(method: str, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The classes of a method that needs them."""
    if not class_names:
        raise ValueError(f"{method} is bound to its classes; give class_names=[...].")
    return tuple(class_names)


def embedding_width(model: Backbone) -> int:
    """The width of the space that images and texts share."""
    return model.encode_text(["X"]).shape[1]


def normal(generator_seed: int, *shape: int, std: float = 0.02) -> nn.Parameter:
    """Parameters drawn from N(0, std^2) by their own seed."""
    return nn.Parameter(std * torch.randn(*shape, generator=torch.Generator().manual_seed(generator_seed)))


def linear(d_in: int, d_out: int, seed: int) -> nn.Linear:
    """torch's own random start of a linear map, drawn by its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(d_in, d_out)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, list(names)[:3])) + (", ..." if len(names) > 3 else "")
