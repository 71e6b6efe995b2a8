"""How well an adaptation recognises images it was not trained on, of its classes and of new ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlsae.adaptation.adaptation import ADAPTATIONS
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.comparison.gains import harmonic_mean
from vlsae.adaptation.few_shot import base_and_new, few_shot
from vlsae.adaptation.prompts import clean_name
from vlsae.adaptation.tuning import adapt
from vlsae.atomic import replacing
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.images.sources import ImageSource, load_images

BATCH = 64


def adapt_and_score(
    base: Backbone, images: Any, method: str, *, classes: str = "all", shots: int = 16,
    templates: Sequence[str] = DEFAULT_TEMPLATES, out: str | Path | None = None, seed: int = 0, progress: bool = True,
    **options: Any,
) -> tuple[AdaptedBackbone, dict[str, Any]]:  # fmt: skip
    """Train an adaptation on a few images a class and classify the others before and after it.

    With halves of the classes this is the base-to-new protocol of CoCoOp (arXiv 2203.05557, section 4.1): images are
    told apart among the classes of their own half, and `H = 2 b n / (b + n)` of the two accuracies.

    Args:
        base: with a text tower.
        images: anything with classes that `load_images` opens, such as a folder with a sub-folder a class.
        method: a registered name.
        classes: "all", or the half that is trained on: "base" or "new".
        shots: images a class to train on; the others are classified.
        templates, out, progress, **options: as in `adapt`.
        seed: of shots and order.

    Returns:
        The adapted model, and `n_train`, `n_held_out` and accuracies: "accuracy_before" and "accuracy_after" of all
        classes, or "base_...", "new_..." and "harmonic_mean_..."; None where a head knows no such classes.

    Raises:
        ValueError: as `adapt`; for an unknown `classes`; where no image of a group of classes is left.

    Example:
        >>> from vlsae import load_model
        >>> from vlsae.world import scenes
        >>> drawn = ImageSource([scene.image for scene in scenes(8, seed=0)], [0, 1] * 4, ["cat", "dog"])
        >>> _, facts = adapt_and_score(load_model("tiny"), drawn, "tip_adapter", shots=2, progress=False)
        >>> facts["n_train"], facts["n_held_out"]
        (4, 4)
    """
    source = load_images(images)
    labels = source.known_labels()
    names = [clean_name(name) for name in source.class_names]
    groups = _groups(len(names), classes)
    trained = groups.get(classes) or groups["accuracy"]
    to_train = [trained.index(label) if label in trained else -1 for label in labels]
    ADAPTATIONS.get(method)  # an unknown name is the first thing to say
    chosen = set(few_shot(to_train, shots, seed))
    if not any(label >= 0 and i not in chosen for i, label in enumerate(labels)):
        raise ValueError(
            f"shots={shots} takes all {len(chosen)} images, and none is left to be classified; give fewer shots, or use "
            "vlsae.adapt, which scores nothing."
        )
    adapted = adapt(base, source, method, labels=to_train, class_names=[names[c] for c in trained], shots=shots,
                    templates=templates, out=out, seed=seed, progress=progress, **options)  # fmt: skip
    facts: dict[str, Any] = {"n_train": len(chosen), "n_held_out": 0}
    for group, members in groups.items():
        rest = [(i, members.index(label)) for i, label in enumerate(labels) if label in members and i not in chosen]
        facts["n_held_out"] += len(rest)
        group_names = [names[c] for c in members]
        facts[f"{group}_before"] = _accuracy(base, source, rest, group_names, templates)
        known = adapted.adaptation.class_names in (None, tuple(group_names))
        facts[f"{group}_after"] = _accuracy(adapted, source, rest, group_names, templates) if known else None
    if classes != "all":
        for when in ("before", "after"):
            pair = facts[f"base_{when}"], facts[f"new_{when}"]
            facts[f"harmonic_mean_{when}"] = None if None in pair else harmonic_mean(*(100 * a for a in pair)) / 100
    if out is not None:
        with replacing(Path(out) / "scores.json") as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return adapted, facts


def _groups(n_classes: int, classes: str) -> dict[str, list[int]]:
    """The classes among which images are told apart, by what their accuracy is called."""
    if classes == "all":
        return {"accuracy": list(range(n_classes))}
    if classes not in ("base", "new"):
        raise ValueError(f"classes={classes!r} is unknown; train on 'all', or on the half 'base' or 'new'.")
    if n_classes < 2:
        raise ValueError(f"{n_classes} classes have no two halves; use classes='all', or images of more classes.")
    return dict(zip(("base", "new"), base_and_new(n_classes), strict=True))


def _accuracy(model: Backbone, source: ImageSource, images: list[tuple[int, int]], class_names: Sequence[str],
              templates: Sequence[str]) -> float:  # fmt: skip
    if not images:
        raise ValueError(f"No image of {class_names[0]!r} and its like is left to be classified; give fewer shots.")
    head, right = model.head(class_names, templates), 0
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        with torch.no_grad():
            found = head(model.encode_image([source[i] for i, _ in part])).argmax(1)
        right += int((found.cpu() == torch.tensor([label for _, label in part])).sum())
    return right / len(images)
