"""Scenes with exact truth: a lazily drawn sequence, deterministic by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from PIL import Image

from vlsae.world.captions import caption, labels, random_caption
from vlsae.world.icons import UNITS
from vlsae.world.layout import (
    BACKGROUND_COLORS,
    OBJECT_COLORS,
    SIZES,
    TEXTURES,
    Layout,
    SceneObject,
    SceneOptions,
    sample_layout,
)
from vlsae.world.render import render


class Scene:
    """One image with everything that is true about it.

    Attributes:
        layout: the full recipe of the picture.
        resolution: side of the image in pixels.
        image: PIL RGB image.
        pixels: the same as uint8 `[H, W, 3]`.
        masks: bool `[objects, H, W]`, visible ink of each object.
        objects: tuple of `SceneObject` (`.name .group .color .size .font .x .y .extent`).
        background, texture: the ground.
        caption: the full description in words.
        labels: all concepts by kind.
    """

    def __init__(self, layout: Layout, resolution: int = UNITS):
        self.layout = layout
        self.resolution = resolution

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        return render(self.layout, self.resolution)

    @property
    def pixels(self) -> np.ndarray:
        return self._drawn[0]

    @property
    def masks(self) -> np.ndarray:
        return self._drawn[1]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        return self.layout.objects

    @property
    def background(self) -> str:
        return self.layout.background

    @property
    def texture(self) -> str:
        return self.layout.texture

    @property
    def caption(self) -> str:
        return caption(self.layout)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        return labels(self.layout)

    def random_caption(self, rng: random.Random) -> str:
        """A shorter, varied caption: attributes and the background are sometimes left out."""
        return random_caption(self.layout, rng)

    def __repr__(self) -> str:
        return f"Scene({self.caption!r}, {self.resolution} px)"


class Scenes(Sequence):
    """A sequence of scenes, each drawn when it is asked for and a function of `(seed, index)` alone."""

    def __init__(self, n: int, seed: int, options: SceneOptions, resolution: int = UNITS):
        self.seed, self.options, self.resolution = seed, options, resolution
        self._indices = range(n)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            part = Scenes(0, self.seed, self.options, self.resolution)
            part._indices = self._indices[index]
            return part
        rng = random.Random(f"{self.seed}/{self._indices[index]}")
        return Scene(sample_layout(self.options, rng), self.resolution)


def scenes(n: int, seed: int = 0, *, resolution: int = UNITS, **options) -> Scenes:
    """Draw `n` scenes with known truth.

    Scene `i` depends on `seed`, `i` and the options only: a longer sequence begins with a shorter one.

    Args:
        n: how many, >= 0.
        seed: any integer.
        resolution: side of the images in pixels.
        **options: fields of `vlsae.world.SceneOptions`, such as `n_objects`, `styles`, `align`, `spurious`.

    Returns:
        A sequence of `Scene`; slices are sequences too.

    Raises:
        ValueError: for a negative `n` or an impossible option.

    Example:
        >>> from vlsae.world import scenes
        >>> scene = scenes(10, seed=0)[3]
        >>> scene.image.size, scene.masks.shape[1:]
        ((64, 64), (64, 64))
    """
    if n < 0:
        raise ValueError(f"n={n} scenes were asked for; give a number >= 0.")
    return Scenes(n, seed, SceneOptions(**options), resolution)


ATTRIBUTES = ("name", "color", "size", "background", "texture")


def counterfactual(scene: Scene, attribute: str, value: str | None = None, *, obj: int = 0, seed: int = 0) -> Scene:
    """The same scene with one attribute changed and every other pixel identical.

    Args:
        scene: the original.
        attribute: "name" (another object of the same place and size), "color", "size", "background" or "texture".
        value: the new value; drawn at random among the others where None.
        obj: which object, for its attributes.
        seed: of the random choice.

    Returns:
        A new `Scene`. Pixels outside the changed object (or, for the ground, under every object's ink) stay the same.

    Raises:
        ValueError: for an unknown attribute or value.
    """
    from vlsae.world.icons import icons

    layout = scene.layout
    target = layout.objects[obj]
    choices = {
        "name": [n for n, icon in icons().items() if target.font in icon.fonts],
        "color": [c for c in OBJECT_COLORS if c != layout.background],
        "size": list(SIZES),
        "background": [c for c in BACKGROUND_COLORS if all(c != o.color for o in layout.objects)],
        "texture": list(TEXTURES),
    }
    if attribute not in choices:
        raise ValueError(f"Unknown attribute {attribute!r}; use one of {', '.join(ATTRIBUTES)}.")
    current = getattr(layout if attribute in ("background", "texture") else target, attribute)
    others = [c for c in choices[attribute] if c != current]
    value = value if value is not None else random.Random(f"{seed}/{attribute}").choice(others)
    if value not in choices[attribute]:
        raise ValueError(f"{value!r} is not a possible {attribute} here; use one of {', '.join(others)}.")
    if attribute in ("background", "texture"):
        return Scene(replace(layout, **{attribute: value}), scene.resolution)
    changed = _resized(target, value) if attribute == "size" else replace(target, **{attribute: value})
    if attribute == "name":
        changed = replace(changed, group=icons()[value].group)
    objects = tuple(changed if i == obj % len(layout.objects) else o for i, o in enumerate(layout.objects))
    return Scene(replace(layout, objects=objects), scene.resolution)


def _resized(obj: SceneObject, size: str) -> SceneObject:
    """The object with another size about the same centre, kept inside the image."""
    extent = sum(SIZES[size]) // 2
    x, y = (min(max(0, round(c - extent / 2)), UNITS - extent) for c in obj.center)
    return replace(obj, size=size, extent=extent, x=x, y=y)
