"""The small grammar that describes a scene in words, and the concept words themselves."""

from __future__ import annotations

import random
from functools import lru_cache

from vlsae.world.icons import FONTS, GROUPS, icons
from vlsae.world.layout import BACKGROUND_COLORS, OBJECT_COLORS, SIZES, TEXTURES, Layout, SceneObject


@lru_cache(maxsize=1)
def _concepts() -> dict[str, tuple[str, ...]]:
    return {
        "object": tuple(icons()),
        "group": tuple(GROUPS),
        "color": OBJECT_COLORS,
        "size": tuple(SIZES),
        "background": tuple(f"{c} background" for c in BACKGROUND_COLORS),
        "texture": TEXTURES,
        "font": FONTS,
    }


def concepts() -> dict[str, list[str]]:
    """The concept words of the embedded world by kind.

    Returns:
        `{"object": [...], "group": [...], "color": [...], "size": [...], "background": [...], "texture": [...],
        "font": [...]}`. Fonts are styles, never words of a caption.

    Example:
        >>> from vlsae.world import concepts
        >>> concepts()["texture"]
        ['plain', 'striped', 'dotted', 'checkered']
    """
    return {kind: list(words) for kind, words in _concepts().items()}


def labels(layout: Layout) -> dict[str, tuple[str, ...]]:
    """All concepts present in a scene, by kind, each once and in order of appearance."""
    found: dict[str, tuple[str, ...]] = {
        "object": tuple(o.name for o in layout.objects),
        "group": tuple(dict.fromkeys(o.group for o in layout.objects)),
        "color": tuple(dict.fromkeys(o.color for o in layout.objects)),
        "size": tuple(dict.fromkeys(o.size for o in layout.objects)),
        "background": (f"{layout.background} background",),
        "texture": (layout.texture,),
        "font": tuple(dict.fromkeys(o.font for o in layout.objects)),
    }
    return found


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def relation(a: SceneObject, b: SceneObject) -> str:
    """Where `a` lies as seen from `b`, along the axis on which their centres are further apart."""
    dx, dy = (p - q for p, q in zip(a.center, b.center, strict=True))
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _describe(obj: SceneObject, color: bool = True, size: bool = True, word: str | None = None) -> str:
    parts = [obj.size if size and obj.size != "medium" else "", obj.color if color else "", word or obj.name]
    return with_article(" ".join(p for p in parts if p))


def _ground(layout: Layout, texture: bool = True) -> str:
    words = [layout.background, layout.texture if texture and layout.texture != "plain" else "", "background"]
    return " on " + with_article(" ".join(w for w in words if w))


def caption(layout: Layout) -> str:
    """The full description: every object with size and colour, the relation of two, the background.

    Example:
        >>> from vlsae.world import scenes
        >>> scenes(1, seed=3)[0].caption.split()[0]
        'a'
    """
    phrases = [_describe(o) for o in layout.objects]
    if len(phrases) == 2:
        listing = f"{phrases[0]} {relation(*layout.objects)} {phrases[1]}"
    else:
        listing = " and ".join(phrases)
    return listing + _ground(layout)


def random_caption(layout: Layout, rng: random.Random) -> str:
    """A caption as people write them: some attributes left out, objects in any order, sometimes only the group."""
    objects = list(layout.objects)
    rng.shuffle(objects)
    phrases = []
    for obj in objects:
        word = obj.group if rng.random() < 0.08 else obj.name
        phrases.append(_describe(obj, color=rng.random() < 0.85, size=rng.random() < 0.6, word=word))
    if len(objects) == 2 and rng.random() < 0.6:
        listing = f"{phrases[0]} {relation(*objects)} {phrases[1]}"
    else:
        listing = " and ".join(phrases)
    if rng.random() < 0.7:
        listing += _ground(layout, texture=rng.random() < 0.7)
    return f"a photo of {listing}" if rng.random() < 0.15 else listing
