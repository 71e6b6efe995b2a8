"""Tokens of models with other patch grids, on one grid: what is compared must look at the same places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.activations.format import StoreError, is_pooled
from vlsae.activations.reader import ActivationStore


def resample_patches(x: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Patch tokens on another grid, `y_q = sum_p w_qp x_p`, bilinear with antialiasing (arXiv 2502.03714).

    The weights are those of a triangle around the centre of the new patch, as wide as the larger of the old and the new
    patch, and sum to 1: a field that is linear in the place stays so, but for patches whose triangle leaves the image.

    Args:
        x: `[images, rows * columns, d]`, row by row.
        grid: its `(rows, columns)`.
        to: the wanted `(rows, columns)`.

    Returns:
        `[images, to_rows * to_columns, d]`; `x` itself where the grids are equal.

    Raises:
        ValueError: for a number of tokens that is not the grid's.

    Example:
        >>> resample_patches(torch.ones(2, 64, 3), (8, 8), (4, 4)).shape
        torch.Size([2, 16, 3])
    """
    if x.ndim != 3 or x.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"Tokens have shape {tuple(x.shape)}; give [images, {grid[0]} * {grid[1]}, d] for this grid.")
    if tuple(grid) == tuple(to):
        return x
    maps = x.transpose(1, 2).unflatten(2, tuple(grid))
    return F.interpolate(maps, tuple(to), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


class OnGrid(ActivationStore):
    """A store read on another patch grid, resampled while it is read; float32, class tokens first, registers left out.

    Args:
        store: of tokens with all patches of each image.
        grid: `(rows, columns)` of the new grid.
        cls: keep class tokens; those that the store has where None.

    Raises:
        StoreError: for a store whose tokens are not all patches of an image, or class tokens that it does not have.
    """

    def __init__(self, store: ActivationStore, grid: tuple[int, int], cls: bool | None = None):
        super().__init__(store.path, store.site)
        roles, size = np.array(store.token_roles), (store.geometry.rows, store.geometry.columns)
        self._patches, found = np.flatnonzero(roles == "patch"), np.flatnonzero(roles == "cls")
        if is_pooled(store.site) or store.config.random_k or len(self._patches) != size[0] * size[1]:
            raise StoreError(
                f"{store} does not hold all {size[0]} x {size[1]} patches of each image, so it has no grid to resample; "
                "extract it with tokens='patches' or 'patches+cls'."
            )
        if cls and not len(found):
            raise StoreError(f"{store} holds no class tokens; extract it with tokens='patches+cls', or leave them out.")
        self._stored, self._from, self._to = store, size, (int(grid[0]), int(grid[1]))
        self._cls = found if cls or cls is None else found[:0]
        self.n_tokens = len(self._cls) + self._to[0] * self._to[1]
        self.config = replace(
            self.config,
            dtype="float32",
            token_roles=["cls"] * len(self._cls) + ["patch"] * (self._to[0] * self._to[1]),
            geometry={**self.config.geometry, "rows": self._to[0], "columns": self._to[1]},
        )

    @property
    def fingerprint(self) -> str:
        """That of the store, and the grid."""
        return f"{super().fingerprint}/{self._from[0]}x{self._from[1]}>{self._to[0]}x{self._to[1]}"

    def _raw(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for raw in self._stored._raw(start, stop):
            x = self._stored._tensor(raw)
            patches = resample_patches(x[:, self._patches], self._from, self._to)
            yield torch.cat([x[:, self._cls], patches], 1).numpy()

    def mean(self) -> Tensor:
        """Mean of all resampled tokens, float32 `[d]`; one pass, since patches at the border weigh differently now."""
        total = sum(x.double().sum((0, 1)) for _, x in self.batches())
        return (total / len(self)).float()


def common_grid(
    stores: Mapping[str, ActivationStore | str | Path], grid: Sequence[int] | None = None
) -> dict[str, ActivationStore]:
    """Stores of the same images, of models with other patch grids, as stores of the same tokens.

    Patches are resampled (`resample_patches`), class tokens stand for class tokens where all models have one and are
    left out otherwise.

    Args:
        stores: by model; of the same images and token policy ("patches" or "patches+cls").
        grid: `(rows, columns)`; the smallest of all where None, so that no model is given detail it never had.

    Returns:
        Stores for `train_universal`, `LayerActivations`, ... ; one that already holds these tokens is returned as it is.

    Raises:
        StoreError: for no stores, or one that does not hold all patches of each image.
    """
    opened = {name: ActivationStore(x) if isinstance(x, (str, Path)) else x for name, x in stores.items()}
    if not opened:
        raise StoreError("There are no stores; give at least one model's, by name.")
    sizes = [(store.geometry.rows, store.geometry.columns) for store in opened.values()]
    grid = tuple(grid or (min(rows for rows, _ in sizes), min(columns for _, columns in sizes)))
    cls = all("cls" in store.token_roles for store in opened.values())
    return {name: _on_grid(store, grid, cls) for name, store in opened.items()}


def _on_grid(store: ActivationStore, grid: tuple[int, int], cls: bool) -> ActivationStore:
    resampled = OnGrid(store, grid, cls)
    same = (store.geometry.rows, store.geometry.columns) == grid
    return store if same and resampled.token_roles == store.token_roles else resampled
