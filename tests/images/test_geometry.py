"""Patches and pixels find each other, on photos of any shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsae.images.geometry import Geometry

SQUARE = Geometry(224, 224, 14, 14)
SIZES = st.tuples(st.integers(20, 700), st.integers(20, 700))
GEOMETRIES = st.sampled_from(
    [
        SQUARE,
        Geometry(224, 224, 7, 7, "crop", 256),
        Geometry(256, 256, 16, 16, "squash"),
        Geometry(64, 64, 8, 8),
        Geometry(96, 96, 6, 6, "pad"),
    ]
)


@given(GEOMETRIES, SIZES, st.data())
def test_the_centre_of_a_patchs_box_is_seen_by_that_patch(geometry, size, data):
    patch = data.draw(st.integers(0, geometry.rows * geometry.columns - 1))
    x0, y0, x1, y1 = geometry.patch_box(patch, size)
    assert geometry.patch_at((x0 + x1) / 2, (y0 + y1) / 2, size) == patch


@given(GEOMETRIES, SIZES, st.data())
def test_a_map_with_one_hot_patch_is_hot_exactly_in_its_box(geometry, size, data):
    patch = data.draw(st.integers(0, geometry.rows * geometry.columns - 1))
    grid = np.zeros((geometry.rows, geometry.columns))
    grid.ravel()[patch] = 1
    hot = geometry.to_image(grid, size, "nearest") == 1
    x0, y0, x1, y1 = geometry.patch_box(patch, size)
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    margin = 1e-6  # pixels whose centre lies on a border may go either way
    inside = ((y > y0 + margin) & (y < y1 - margin))[:, None] & ((x > x0 + margin) & (x < x1 - margin))[None]
    touched = ((y > y0 - margin) & (y < y1 + margin))[:, None] & ((x > x0 - margin) & (x < x1 + margin))[None]
    assert (hot | ~inside).all()
    assert (~hot | touched).all()


def test_closed_forms():
    assert SQUARE.patch_box(0, (224, 224)) == (0, 0, 16, 16)
    assert SQUARE.patch_box(195, (224, 448)) == (208, 320, 224, 336)
    assert Geometry(100, 100, 10, 10, "squash").patch_box(99, (200, 50)) == (180, 45, 200, 50)
    assert Geometry(224, 224, 14, 14, "crop", 256).patch_box(0, (256, 256)) == (16, 16, 32, 32)
    assert Geometry(100, 100, 10, 10, "pad").patch_at(1, 1, (200, 100)) == 20


def test_outside_the_crop_is_nan():
    values = SQUARE.to_image(np.ones((14, 14)), (448, 224))
    assert np.isnan(values[:, :112]).all()
    assert np.isnan(values[:, 336:]).all()
    assert (values[:, 112:336] == 1).all()
    assert SQUARE.patch_at(100, 100, (448, 224)) is None


def test_bilinear_reproduces_a_plane_between_patch_centres():
    grid = np.add.outer(np.arange(14.0), 2 * np.arange(14.0))
    values = SQUARE.to_image(grid, (224, 224))
    steps = (np.arange(224) + 0.5) / 16 - 0.5
    expected = np.add.outer(steps, 2 * steps)
    assert np.abs(values - expected)[8:216, 8:216].max() < 1e-4


def test_pooling_is_exact_area():
    """A mask of whole pixels against brute force on a five times finer grid; its borders lie on fifths of a pixel."""
    geometry = Geometry(60, 60, 5, 5)
    rng = np.random.default_rng(0)
    mask = rng.random((48, 72)) < 0.4
    fine = np.kron(mask, np.ones((5, 5)))
    expected = np.empty((5, 5))
    for patch in range(25):
        x0, y0, x1, y1 = (round(5 * v) for v in geometry.patch_box(patch, (72, 48)))
        expected.ravel()[patch] = fine[y0:y1, x0:x1].mean()
    assert np.abs(geometry.pool(mask) - expected).max() < 1e-9
    assert geometry.pool(np.stack([mask, ~mask])).sum(0) == pytest.approx(np.ones((5, 5)))


def test_wrong_input_says_why():
    with pytest.raises(ValueError, match="patch=196 is outside"):
        SQUARE.patch_box(196, (224, 224))
    with pytest.raises(ValueError, match=r"\(7, 7\), but this model has \(14, 14\)"):
        SQUARE.to_image(np.ones((7, 7)), (10, 10))
    with pytest.raises(ValueError, match="'cubic' is unknown"):
        SQUARE.to_image(np.ones((14, 14)), (10, 10), "cubic")
    with pytest.raises(ValueError, match="kind 'warp'"):
        Geometry(8, 8, 1, 1, "warp")
