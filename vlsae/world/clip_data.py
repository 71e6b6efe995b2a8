"""Training batches of the tiny CLIP: the curriculum, the scenes, and the truth of every image and patch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from vlsae.world.captions import concepts, random_caption
from vlsae.world.layout import SceneOptions
from vlsae.world.scenes import scenes

KINDS = ("object", "group", "color", "size", "background", "texture")  # fonts are styles, not words
WORDS = [word for kind in KINDS for word in concepts()[kind]]
WORD_INDEX = {word: i for i, word in enumerate(WORDS)}
SLICES = {}
for _kind in KINDS:
    _start = WORD_INDEX[concepts()[_kind][0]]
    SLICES[_kind] = slice(_start, _start + len(concepts()[_kind]))
GRID = 8
COVERED = 0.25  # a patch of 8 pixels shows an object when more than this share of it, 16 pixels, is the object's ink
BACKGROUND_PATCHES = 8  # kept at random beside the patches with ink when tokens are dropped

SHAPES_FIRST = 30_000  # images of black objects on white
COLORS_FULL = 110_000  # from here on every scene is coloured
FREE_FROM = 60_000  # positions leave the 4-unit grid from here on


def curriculum(seen: int) -> SceneOptions:
    """The kind of scenes to draw after `seen` images: shapes first, then colours, textures, small and many objects."""
    ramp = min(1.0, max(0.0, (seen - SHAPES_FIRST) / (COLORS_FULL - SHAPES_FIRST)))
    blend = lambda a, b: tuple(x + (y - x) * ramp for x, y in zip(a, b, strict=True))  # noqa: E731
    return SceneOptions(
        n_objects=blend((0.6, 0.4, 0.0, 0.0), (0.25, 0.3, 0.2, 0.25)),
        sizes=blend((0.3, 1.0, 1.0), (1.3, 1.0, 0.8)),
        textures=blend((1.0, 0.05, 0.05, 0.05), (1.0, 1.0, 1.0, 1.0)),
        combinations="seen",
        styles="seen",
        align=4 if seen < FREE_FROM else (2 if seen < COLORS_FULL and seen // 64 % 2 else 1),
        black_on_white=1.0 - ramp,
    )


def tokens_kept(seen: int, total: int, rng: random.Random) -> int:
    """How many patches a step looks at, of 64: those with objects first, all of them in the last fifth."""
    if seen >= 0.8 * total:
        return 64
    return 32 if seen < SHAPES_FIRST else rng.choices((40, 48, 64), (0.45, 0.35, 0.2))[0]


@dataclass
class Batch:
    """One step's truth. `keep` are patch indices; patch labels are word indices within the kind, or -1."""

    pixels: np.ndarray  # uint8 [B, 64, 64, 3]
    captions: list[str]
    present: np.ndarray  # float32 [B, words]
    keep: np.ndarray  # int64 [B, K]
    patch_object: np.ndarray  # int64 [B, K]
    patch_color: np.ndarray
    patch_background: np.ndarray


def patch_coverage(masks: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Share of every patch that each object covers, `[objects, grid^2]`, from masks `[objects, 64, 64]`."""
    n, side = len(masks), masks.shape[1] // grid
    return masks.reshape(n, grid, side, grid, side).mean((2, 4)).reshape(n, grid * grid)


def patch_owners(coverage: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What each patch shows, `[patches]`: the value of the object that covers most of it, -1 where that is too little.

    Args:
        coverage: `[objects, patches]` of a square grid.
        values: `[objects]` integers.
    """
    least = COVERED * coverage.shape[1] / GRID**2  # the same 16 pixels of ink in patches of any size
    return np.where(coverage.max(0) > least, values[coverage.argmax(0)], -1)


def presence(labels: dict[str, tuple[str, ...]]) -> np.ndarray:
    """The concept words of a scene as a 0/1 vector over `WORDS`."""
    row = np.zeros(len(WORDS), np.float32)
    row[[WORD_INDEX[w] for kind in KINDS for w in labels[kind]]] = 1
    return row


def _keep(ink: np.ndarray, k: int, rng: random.Random) -> list[int]:
    """The `k` patches to look at: background at random, the rest by how much ink they show."""
    if k >= len(ink):
        return list(range(len(ink)))
    order = sorted(range(len(ink)), key=lambda p: (-ink[p], rng.random()))
    shown, rest = order[: k - BACKGROUND_PATCHES], order[k - BACKGROUND_PATCHES :]
    return shown + rng.sample(rest, BACKGROUND_PATCHES)


def make_batch(seed: int, step: int, seen: int, total: int, size: int, grid: int = GRID) -> Batch:
    """Draw the batch of one step for a model of `grid x grid` patches; a function of its arguments alone."""
    rng = random.Random(f"clip/{seed}/{step}")
    k = tokens_kept(seen, total, rng)
    drawn = list(scenes(size, seed=rng.getrandbits(48), **vars(curriculum(seen))))
    keep, objects, colors, grounds = ([] for _ in range(4))
    for scene in drawn:
        coverage = patch_coverage(scene.masks, grid)
        ink = coverage.sum(0)
        kept = _keep(ink, k, rng)
        names = np.array([WORD_INDEX[o.name] - SLICES["object"].start for o in scene.objects])
        shades = np.array([WORD_INDEX[o.color] - SLICES["color"].start for o in scene.objects])
        ground = WORD_INDEX[f"{scene.background} background"] - SLICES["background"].start
        keep.append(kept)
        objects.append(patch_owners(coverage, names)[kept])
        colors.append(patch_owners(coverage, shades)[kept])
        grounds.append(np.where(ink == 0, ground, -1)[kept])
    return Batch(
        pixels=np.stack([s.pixels for s in drawn]),
        captions=[random_caption(s.layout, rng) for s in drawn],
        present=np.stack([presence(s.labels) for s in drawn]),
        keep=np.array(keep),
        patch_object=np.stack(objects),
        patch_color=np.stack(colors),
        patch_background=np.stack(grounds),
    )
