"""Few-shot samples and the split into base and new classes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def few_shot(labels: Sequence[int], shots: int, seed: int = 0) -> list[int]:
    """Numbers of `shots` images a class, drawn without replacement, classes in order.

    Args:
        labels: class number of every image; negative ones belong to no class.
        shots: images a class; 0 takes all.
        seed: of the draw.

    Raises:
        ValueError: where a class has fewer images than `shots`, or none has any.

    Example:
        >>> few_shot([0, 1, 0, 1, -1], shots=1, seed=0)
        [2, 3]
    """
    if shots < 0:
        raise ValueError(f"shots={shots} was given; expected images a class, or 0 for all.")
    classes: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        if label >= 0:
            classes.setdefault(int(label), []).append(i)
    short = {c: len(found) for c, found in classes.items() if len(found) < shots}
    if not classes or short:
        worst = min(short.items(), key=lambda pair: pair[1]) if short else None
        raise ValueError(
            "No image has a class; put the images of each class into a sub-folder of its own." if worst is None else
            f"{shots} shots were asked for, but class {worst[0]} has {worst[1]} images; give fewer shots or more images."
        )  # fmt: skip
    rng = random.Random(f"few-shot/{seed}")
    return [i for c in sorted(classes) for i in (rng.sample(classes[c], shots) if shots else classes[c])]


def base_and_new(n_classes: int) -> tuple[list[int], list[int]]:
    """The first half of the class numbers, rounded up, and the rest, as CoCoOp splits them (arXiv 2203.05557, sec. 4.1).

    Example:
        >>> base_and_new(5)
        ([0, 1, 2], [3, 4])
    """
    half = math.ceil(n_classes / 2)
    return list(range(half)), list(range(half, n_classes))
