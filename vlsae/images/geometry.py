"""Where a model's patches lie on the original image: resize, crop and padding as data, in both directions."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

KINDS = ("crop", "squash", "pad")


@dataclass(frozen=True)
class Affine:
    """Pixel `(x, y)` of the original lies at `(x * scale_x - left, y * scale_y - top)` of the model's input."""

    scale_x: float
    scale_y: float
    left: float
    top: float


@dataclass(frozen=True)
class Geometry:
    """How a preprocessor maps an image to the model's square or rectangular input.

    Args:
        height, width: the model's input in pixels.
        rows, columns: its patch grid.
        kind: "crop" (resize the shorter side to `resize`, cut out the centre), "squash" (resize both sides freely)
            or "pad" (resize the longer side, pad the rest equally).
        resize: length of the shorter side before a crop; `height` where None.

    Example:
        >>> g = Geometry(height=224, width=224, rows=14, columns=14)
        >>> g.patch_box(0, (448, 224))  # the left 112 columns of this wide photo are cropped away
        (112.0, 0.0, 128.0, 16.0)
        >>> g.patch_at(5.0, 5.0, (448, 224)) is None
        True
    """

    height: int
    width: int
    rows: int
    columns: int
    kind: str = "crop"
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Geometry kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}.")

    def affine(self, size: tuple[int, int]) -> Affine:
        """The map from an original of `size = (width, height)` pixels to the model's input."""
        w, h = size
        if self.kind == "squash":
            return Affine(self.width / w, self.height / h, 0.0, 0.0)
        if self.kind == "pad":
            scale = min(self.width / w, self.height / h)
            new_w, new_h = max(1, round(w * scale)), max(1, round(h * scale))
        else:
            short = self.resize or min(self.height, self.width)
            new_w, new_h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
        left, top = round((new_w - self.width) / 2), round((new_h - self.height) / 2)
        return Affine(new_w / w, new_h / h, float(left), float(top))

    def patch_box(self, patch: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The rectangle `(x0, y0, x1, y1)` in original pixels that patch number `patch` (row by row) looks at."""
        if not 0 <= patch < self.rows * self.columns:
            raise ValueError(f"patch={patch} is outside the grid of {self.rows} x {self.columns} patches.")
        a = self.affine(size)
        row, column = divmod(patch, self.columns)
        step_x, step_y = self.width / self.columns, self.height / self.rows
        return (
            (column * step_x + a.left) / a.scale_x,
            (row * step_y + a.top) / a.scale_y,
            ((column + 1) * step_x + a.left) / a.scale_x,
            ((row + 1) * step_y + a.top) / a.scale_y,
        )

    def patch_at(self, x: float, y: float, size: tuple[int, int]) -> int | None:
        """The patch that sees the original point `(x, y)`, or None where it is cropped away."""
        a = self.affine(size)
        column = int(np.floor((x * a.scale_x - a.left) * self.columns / self.width))
        row = int(np.floor((y * a.scale_y - a.top) * self.rows / self.height))
        if 0 <= row < self.rows and 0 <= column < self.columns:
            return row * self.columns + column
        return None

    def to_image(self, grid: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear") -> np.ndarray:
        """Spread a patch map over the original image.

        Args:
            grid: `[rows, columns]` values, one per patch.
            size: `(width, height)` of the original in pixels.
            interpolation: "nearest" (every pixel takes its patch's value) or "bilinear" (between patch centres).

        Returns:
            float32 `[height, width]`; NaN where the model did not look.

        Raises:
            ValueError: for a grid of another shape or an unknown interpolation.
        """
        grid = np.asarray(grid, np.float32)
        if grid.shape != (self.rows, self.columns):
            raise ValueError(f"The patch map is {grid.shape}, but this model has {(self.rows, self.columns)} patches.")
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"interpolation={interpolation!r} is unknown; use 'nearest' or 'bilinear'.")
        a = self.affine(size)
        column = ((np.arange(size[0]) + 0.5) * a.scale_x - a.left) * self.columns / self.width
        row = ((np.arange(size[1]) + 0.5) * a.scale_y - a.top) * self.rows / self.height
        seen = ((row >= 0) & (row < self.rows))[:, None] & ((column >= 0) & (column < self.columns))[None, :]
        if interpolation == "nearest":
            r = np.clip(np.floor(row).astype(int), 0, self.rows - 1)
            c = np.clip(np.floor(column).astype(int), 0, self.columns - 1)
            values = grid[r[:, None], c[None, :]]
        else:
            values = _interpolate(_interpolate(grid, row, 0), column, 1)
        return np.where(seen, values, np.nan).astype(np.float32)

    def pool(self, mask: np.ndarray) -> np.ndarray:
        """Share of every patch that a pixel mask covers: bool `[H, W]` (or `[n, H, W]`) to float `[..., rows, columns]`.

        Patch borders that cut pixels are weighted exactly (an integral image read at fractional corners).
        """
        mask = np.asarray(mask, np.float64)
        h, w = mask.shape[-2:]
        integral = np.zeros((*mask.shape[:-2], h + 1, w + 1))
        integral[..., 1:, 1:] = mask.cumsum(-2).cumsum(-1)
        a = self.affine((w, h))
        x = np.clip((np.arange(self.columns + 1) * self.width / self.columns + a.left) / a.scale_x, 0, w)
        y = np.clip((np.arange(self.rows + 1) * self.height / self.rows + a.top) / a.scale_y, 0, h)
        corners = _interpolate(_interpolate(integral, y + 0.5, -2), x + 0.5, -1)
        area = corners[..., 1:, 1:] - corners[..., :-1, 1:] - corners[..., 1:, :-1] + corners[..., :-1, :-1]
        size = np.diff(y)[:, None] * np.diff(x)[None, :]
        return np.divide(area, size, out=np.zeros_like(area), where=size > 0)

    def as_dict(self) -> dict:
        return asdict(self)


def _interpolate(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along `axis` at positions `at`, where sample `i` sits at `i + 0.5`; ends are held."""
    n = values.shape[axis]
    position = np.clip(at - 0.5, 0, n - 1)
    low = np.minimum(np.floor(position).astype(int), max(n - 2, 0))
    fraction = position - low
    shape = [1] * values.ndim
    shape[axis] = len(at)
    fraction = fraction.reshape(shape)
    high = np.minimum(low + 1, n - 1)
    return np.take(values, low, axis) * (1 - fraction) + np.take(values, high, axis) * fraction
