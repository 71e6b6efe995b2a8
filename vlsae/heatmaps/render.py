"""Pictures of heatmaps: overlays, contours and reference grids, one scale, its range printed."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOR_MAPS = ("cividis", "magma")  # even in lightness and readable with any colour vision


def _colors(values: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    """Values to RGB floats in [0, 1]."""
    from matplotlib import colormaps

    if cmap not in COLOR_MAPS:
        raise ValueError(f"cmap={cmap!r} is not offered; use one of {', '.join(COLOR_MAPS)}.")
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return colormaps[cmap](np.nan_to_num(scaled))[..., :3]


def value_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The shared scale of several maps: 0 to their largest finite value."""
    return 0.0, max((float(np.nanmax(m)) for m in maps if np.isfinite(m).any()), default=0.0)


def overlay(
    image: Image.Image,
    values: np.ndarray,
    limits: tuple[float, float] | None = None,
    *,
    cmap: str = "magma",
    strength: float = 0.75,
) -> Image.Image:
    """The grey image with the heatmap in colour where it is high; what the model did not see is dimmed.

    Args:
        image: the original.
        values: `[height, width]` from `vlsae.heatmap`.
        limits: values shown as the ends of the scale; 0 and the maximum where None.
        cmap: "magma" or "cividis".
        strength: opacity of the colour at the top of the scale, 0 to 1.

    Returns:
        RGB of the same size.

    Raises:
        ValueError: when the map has another size than the image.
    """
    if values.shape != (image.height, image.width):
        raise ValueError(f"The heatmap is {values.shape}, the image (height, width) {(image.height, image.width)}.")
    low, high = limits or value_range([values])
    grey = np.asarray(image.convert("L"), np.float64)[..., None] / 255
    opacity = strength * np.clip(np.nan_to_num((values - low) / max(high - low, 1e-12)), 0, 1)[..., None] ** 0.7
    seen = np.where(np.isnan(values), 0.35, 1.0)[..., None]
    mixed = grey * (1 - opacity) + _colors(values, low, high, cmap) * opacity
    return Image.fromarray(np.rint(255 * mixed * seen).astype(np.uint8).reshape(*values.shape, 3))


def contour(image: Image.Image, values: np.ndarray, level: float | None = None) -> Image.Image:
    """The colour image with a line around the region above `level` (half the maximum where None).

    The line is white with a black border, which shows on any ground.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    inside = np.nan_to_num(values) > (0.5 * value_range([values])[1] if level is None else level)
    width = max(1, round(max(image.size) / 160))
    edge = inside & ~binary_erosion(inside, iterations=width)
    border = binary_dilation(edge, iterations=width) & ~edge
    pixels = np.asarray(image.convert("RGB")).copy()
    pixels[border] = 0
    pixels[edge] = 255
    return Image.fromarray(pixels)


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The whole image in the middle of a white square of `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (side, side), "white")
    frame.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return frame


def color_bar(
    limits: tuple[float, float], width: int, *, cmap: str = "magma", label: str = "activation"
) -> Image.Image:
    """A labelled scale: the colours with the two values at the ends."""
    ramp = _colors(np.linspace(0, 1, width), 0, 1, cmap)
    bar = Image.new("RGB", (width, 30), "white")
    bar.paste(Image.fromarray(np.rint(255 * np.tile(ramp, (10, 1, 1))).astype(np.uint8)), (0, 0))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(12)
    draw.text((0, 13), f"{limits[0]:.3g}", font=font, fill="black")
    draw.text((width / 2, 13), label, font=font, fill="black", anchor="ma")
    draw.text((width, 13), f"{limits[1]:.3g}", font=font, fill="black", anchor="ra")
    return bar


def reference_grid(
    images: Sequence[Image.Image],
    maps: Sequence[np.ndarray],
    *,
    side: int = 128,
    cmap: str = "magma",
    label: str = "activation",
) -> Image.Image:
    """Reference images above their heatmaps, all on one scale that is printed below.

    Args:
        images: originals, best first.
        maps: one `[height, width]` map an image.
        side: of a thumbnail in pixels.
        cmap: "magma" or "cividis".
        label: what the values are.

    Returns:
        RGB, two rows of thumbnails and the scale.

    Raises:
        ValueError: for no images, or unequal numbers.
    """
    return heatmap_rows(images, [maps], side=side, cmap=cmap, label=label)


def heatmap_rows(
    images: Sequence[Image.Image],
    rows: Sequence[Sequence[np.ndarray]],
    *,
    side: int = 128,
    cmap: str = "magma",
    label: str = "activation",
) -> Image.Image:
    """Images above several rows of heatmaps (one a model, say), all on one scale that is printed below.

    Args:
        images: originals, best first.
        rows: each one `[height, width]` map an image.
        side, cmap, label: as for `reference_grid`.

    Returns:
        RGB, a row of thumbnails, the rows of heatmaps and the scale.

    Raises:
        ValueError: for no images or rows, or unequal numbers.
    """
    if not images or not rows or any(len(maps) != len(images) for maps in rows):
        given = " and ".join(str(len(maps)) for maps in rows) or "no"
        raise ValueError(f"{len(images)} images and {given} maps were given; give equally many, at least one.")
    limits, gap = value_range([values for maps in rows for values in maps]), max(2, side // 24)
    width, height = len(images) * (side + gap) - gap, (len(rows) + 1) * (side + gap)
    canvas = Image.new("RGB", (width, height + 30), "white")
    for i, image in enumerate(images):
        canvas.paste(thumbnail(image, side), (i * (side + gap), 0))
        for r, maps in enumerate(rows, 1):
            picture = thumbnail(overlay(image, maps[i], limits, cmap=cmap), side)
            canvas.paste(picture, (i * (side + gap), r * (side + gap)))
    canvas.paste(color_bar(limits, min(width, 3 * side), cmap=cmap, label=label), (0, height))
    return canvas


def side_by_side(pictures: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    canvas, x = Image.new("RGB", (width, pictures[0].height), "white"), 0
    for picture in pictures:
        canvas.paste(picture, (x, 0))
        x += picture.width + gap
    return canvas


def with_scale(picture: Image.Image, limits: tuple[float, float], *, label: str, cmap: str = "magma") -> Image.Image:
    """A picture above its colour scale with the printed range of values."""
    canvas = Image.new("RGB", (max(picture.width, 240), picture.height + 36), "white")
    canvas.paste(picture, (0, 0))
    canvas.paste(color_bar(limits, min(canvas.width, 480), cmap=cmap, label=label), (0, picture.height + 6))
    return canvas


def png_bytes(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
