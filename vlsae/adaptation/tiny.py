"""The tiny CLIP's few-shot task, scenes in a style it never saw, and what the methods need to learn it."""

from __future__ import annotations

from typing import Any

from vlsae.world.layout import SceneOptions, drawable_names
from vlsae.world.scenes import Scenes, scenes

STYLE = {"styles": "held_out", "n_objects": (1.0, 0.0, 0.0, 0.0)}
TEMPLATES = ("{}",)
TINY: dict[str, dict[str, Any]] = {}


def few_shot_task(n: int, seed: int) -> tuple[Scenes, list[int], list[str]]:
    """`n` scenes of one object in held-out style, their labels, and the ten class names."""
    names = list(drawable_names(SceneOptions(**STYLE)))
    drawn = scenes(n, seed=seed, **STYLE)
    return drawn, [names.index(scene.objects[0].name) for scene in drawn], names
