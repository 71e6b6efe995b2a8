"""From a layout to pixels and exact per-object masks, at any resolution."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlsae.world.icons import UNITS, sticker
from vlsae.world.layout import COLORS, Layout, SceneObject

HALO = 2  # in UNITS
MASK_THRESHOLD = 0.5  # a pixel belongs to an object when at least half of it is covered


@lru_cache(maxsize=512)
def _pattern(texture: str, period: int, direction: int, resolution: int) -> np.ndarray:
    """Where the second colour of a texture goes, as a bool array `[resolution, resolution]`."""
    scale = resolution / UNITS
    steps = (np.arange(resolution) + 0.5) / scale
    y, x = steps[:, None], steps[None, :]
    if texture == "striped":
        along = (y + 0 * x, x + 0 * y, x + y)[direction]
        return (along // (period / 2)) % 2 == 1
    if texture == "dotted":
        return ((y % period) - period / 2) ** 2 + ((x % period) - period / 2) ** 2 < (0.3 * period) ** 2
    return ((y // period + x // period) % 2) == 1


def _rgb(color: str, jitter: tuple[float, float, float]) -> np.ndarray:
    return np.clip(np.asarray(COLORS[color], np.float32) + np.asarray(jitter, np.float32), 0, 255)


def _background(layout: Layout, resolution: int) -> np.ndarray:
    ground = _rgb(layout.background, layout.jitter)
    image = np.empty((resolution, resolution, 3), np.float32)
    image[:] = ground
    if layout.texture != "plain":
        second = ground * 0.75 + (60 if ground.mean() < 128 else 0)
        image[_pattern(layout.texture, layout.period, layout.direction, resolution)] = second
    return image


def place(obj: SceneObject, resolution: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Rows and columns of an object's square in the image, and its ink and halo coverage."""
    scale = resolution / UNITS
    side = max(4, round(obj.extent * scale))
    x = min(round(obj.x * scale), resolution - side)
    y = min(round(obj.y * scale), resolution - side)
    ink, halo = sticker(obj.name, obj.font, side, max(1, round(HALO * scale)), obj.flipped)
    return slice(y, y + side), slice(x, x + side), ink, halo


def _write_word(image: np.ndarray, word: str, y: float, resolution: int) -> np.ndarray:
    """The image with `word` written across it in black on a white strip."""
    scale = resolution / UNITS
    picture = Image.fromarray(np.rint(np.clip(image, 0, 255)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    size = 13 * scale
    while draw.textlength(word, font=ImageFont.load_default(size)) > resolution - 4 * scale:
        size *= 0.92
    top, height = round(y * scale), round(14 * scale)
    draw.rectangle((0, top, resolution, top + height), fill="white")
    font = ImageFont.load_default(size)
    draw.text((resolution / 2, top + height / 2), word, font=font, fill="black", anchor="mm")
    return np.asarray(picture, np.float32)


def render(layout: Layout, resolution: int = UNITS) -> tuple[np.ndarray, np.ndarray]:
    """Draw a layout.

    Args:
        layout: what to draw.
        resolution: side of the square image in pixels, at least 16.

    Returns:
        `(pixels, masks)`: uint8 `[resolution, resolution, 3]`, and bool `[objects, resolution, resolution]`, the
        pixels at least half covered by the visible ink of each object (halo excluded, hidden parts excluded).

    Raises:
        ValueError: for a resolution below 16.
    """
    if resolution < 16:
        raise ValueError(f"resolution={resolution} is too small to draw shapes; give at least 16 pixels.")
    image = _background(layout, resolution)
    masks = np.zeros((len(layout.objects), resolution, resolution), bool)
    for i, obj in enumerate(layout.objects):
        rows, columns, ink, halo = place(obj, resolution)
        patch = image[rows, columns]
        patch += (255 - patch) * halo
        patch += (_rgb(obj.color, obj.jitter) - patch) * ink
        covered = ink[..., 0] >= MASK_THRESHOLD
        masks[:i, rows, columns] &= ~covered
        masks[i, rows, columns] = covered
    if layout.overlay is not None:
        image = _write_word(image, layout.overlay, layout.overlay_y, resolution)
        scale = resolution / UNITS
        top = round(layout.overlay_y * scale)
        masks[:, top : top + round(14 * scale) + 1] = False
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), masks
