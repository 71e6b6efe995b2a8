"""`adapt`: train an adaptation on a few images a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.adaptation.adaptation import ADAPTATIONS, TuningBatch, check_templates
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.few_shot import few_shot
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.images.sources import load_images


@dataclass(frozen=True)
class TuningConfig:
    """How an adaptation is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        lr: learning rate, constant at `warm_up_lr` for the first epoch, then a cosine down to 0.
        optimizer: "sgd" (momentum .9) or "adamw".
        weight_decay: of the optimiser.
        warm_up_lr: of the first epoch, where there are more than one; 0 for no warm-up.
        seed: of shots and order.
    """

    epochs: int = 50
    batch_size: int = 32
    lr: float = 2e-3
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warm_up_lr: float = 1e-5
    seed: int = 0

    def __post_init__(self):
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; use 'sgd' or 'adamw'.")
        if self.epochs < 0 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}: give 0 epochs or more, 1 image or "
                "more a step and a positive learning rate."
            )

    def rate(self, step: int, steps_an_epoch: int) -> float:
        """The learning rate of a step: Dassl's constant warm-up epoch, then its cosine, both by epoch."""
        epoch = step // steps_an_epoch
        if epoch == 0 and self.warm_up_lr and self.epochs > 1:
            return self.warm_up_lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def adapt(
    base: Backbone,
    images: Any,
    method: str,
    *,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    shots: int = 16,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    out: str | Path | None = None,
    penalty: Callable[[AdaptedBackbone, TuningBatch], Tensor] | None = None,
    progress: bool = True,
    **options: Any,
) -> AdaptedBackbone:
    """Train an adaptation of a CLIP on a few images a class; the base model stays frozen.

    Args:
        base: with a text tower.
        images: anything `load_images` opens.
        method: a registered name, such as "coop" or "maple".
        labels: class number of every image, negative for none; the source's own where None.
        class_names: of the numbers; the source's own where None.
        shots: images a class; 0 takes all.
        templates: prompts with one `{}`, for methods that keep the text side.
        out: folder for the result.
        penalty: of the adapted model and a batch, added to its loss, such as `FeatureConstraint.penalty`.
        progress: show a progress bar.
        **options: fields of `TuningConfig`, which replace the method's published recipe, and settings of the method.

    Returns:
        An `AdaptedBackbone`.

    Raises:
        ValueError: for an unknown method or option, labels that do not fit, or too few images of a class.
        FloatingPointError: when the loss becomes NaN; a smaller learning rate helps.

    Example:
        >>> from vlsae import load_model
        >>> from vlsae.world import scenes
        >>> drawn = scenes(8, seed=0)
        >>> adapted = adapt(load_model("tiny"), drawn, "coop", labels=[0, 1] * 4, class_names=["cat", "dog"], shots=2,
        ...                 n_ctx=4, epochs=1, progress=False)
        >>> adapted.zero_shot(drawn[:2], ["cat", "dog"]).shape
        torch.Size([2, 2])
    """
    source = load_images(images)
    labels = list(labels) if labels is not None else source.known_labels()
    class_names = list(class_names if class_names is not None else source.class_names)
    _check_labels(labels, class_names, len(source))
    check_templates(templates)
    kind = ADAPTATIONS.get(method)
    names = {field.name for field in fields(TuningConfig)}
    config = TuningConfig(**{**kind.recipe, **{k: v for k, v in options.items() if k in names}})
    try:
        adaptation = kind(base, class_names, **{k: v for k, v in options.items() if k not in names})
    except TypeError as error:
        raise ValueError(
            f"{method} has no such option ({error}); its settings are in the docstring of {kind.__name__}, and the fields of "
            f"the recipe are {', '.join(sorted(names))}."
        ) from error
    chosen = few_shot(labels, shots, config.seed)
    adapted = AdaptedBackbone(base, adaptation.to(base.device))
    _tune(adapted, source, [(i, labels[i]) for i in chosen], class_names, templates, config, progress, penalty)
    if out is not None:
        adapted.save(out)
    return adapted


def _check_labels(labels: Sequence[int], class_names: Sequence[str], n_images: int) -> None:
    if len(labels) != n_images:
        raise ValueError(f"{n_images} images and {len(labels)} labels were given; give one label an image.")
    if not class_names:
        raise ValueError("No class names are known; put images into a sub-folder a class, or give class_names=[...].")
    if max(labels) >= len(class_names):
        raise ValueError(f"Label {max(labels)} has no name: {len(class_names)} class names were given.")


def _tune(adapted: AdaptedBackbone, source, shots: list[tuple[int, int]], class_names, templates, config: TuningConfig,
          progress: bool, penalty: Callable | None = None) -> None:  # fmt: skip
    """Optimise the adaptation's own parameters; features are computed once where the vision tower stays."""
    adaptation, device = adapted.adaptation, adapted.device
    targets = torch.tensor([label for _, label in shots], device=device)
    frozen = "vision" not in adaptation.changes
    features = _features(adapted.original, source, shots, config.batch_size, progress) if frozen else None
    if features is not None:
        adaptation.prepare(features, targets)
    parameters = [p for p in adaptation.parameters() if p.requires_grad]
    steps_an_epoch = math.ceil(len(shots) / config.batch_size)
    if not parameters or not config.epochs:
        return
    optimizer = _optimizer(parameters, config)
    order = torch.Generator().manual_seed(config.seed)
    with only_training(adapted, parameters), tqdm(total=config.epochs * steps_an_epoch, desc=f"adapt {adaptation.method}",
                                                  disable=not progress) as bar:  # fmt: skip
        for step, rows in enumerate(_batches(len(shots), config, order)):
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step, steps_an_epoch)
            found = features[rows] if features is not None else None
            pixels = None if found is not None else adapted.pixels([source[shots[i][0]] for i in rows.tolist()])
            batch = TuningBatch(targets[rows], class_names, templates, found, pixels)
            loss = adaptation.loss(adapted, batch) + (penalty(adapted, batch) if penalty is not None else 0.0)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss became {loss.item()} at step {step}; lower lr={config.lr}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            adaptation.after_step(step + 1, config.epochs * steps_an_epoch)
            if (step + 1) % steps_an_epoch == 0:
                adaptation.after_epoch((step + 1) // steps_an_epoch, config.epochs)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()


def _batches(n: int, config: TuningConfig, order: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        yield from torch.randperm(n, generator=order).split(config.batch_size)


def _optimizer(parameters: list[Tensor], config: TuningConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)


@torch.no_grad()
def _features(base: Backbone, source, shots, batch_size: int, progress: bool) -> Tensor:
    starts = tqdm(range(0, len(shots), batch_size), desc="embed", disable=not progress)
    return torch.cat([base.encode_image([source[i] for i, _ in shots[s : s + batch_size]]) for s in starts])


@contextmanager
def only_training(model: Backbone, parameters: Sequence[Tensor]) -> Iterator[None]:
    """No gradients for anything in `model` but `parameters` while the block lasts."""
    wanted = {id(p) for p in parameters}
    others = [p for p in model.model.parameters() if id(p) not in wanted and p.requires_grad]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)
