"""A heatmap lies on the right pixels of the original image, and its picture says what it shows."""

import numpy as np
import pytest
import torch
from PIL import Image

import vlsae
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.heatmaps.maps import latent_grids, stored_grids, strongest_latents
from vlsae.heatmaps.render import color_bar, contour, overlay, reference_grid, value_range


@pytest.fixture(scope="module")
def red_detector(tiny):
    """One latent that reads how much a patch embedding looks like red instead of grey."""
    grey, red = (Image.new("RGB", (64, 64), c) for c in ((127, 127, 127), (255, 0, 0)))
    a, b = (tiny.tokens([im], "vision.0.resid_pre")[0, 1:].mean(0) for im in (grey, red))
    sae = ReLUDictionary(192, 2)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[:, 1] = (b - a) / (b - a).norm() ** 2
        sae.b_enc[1] = -(a @ sae.W_enc[:, 1]) - 0.3
    sae.metadata = {"site": "vision.0.resid_pre"}
    return sae


@pytest.mark.parametrize("size", [(200, 90), (90, 200), (64, 64), (333, 250)])
@pytest.mark.parametrize("patch", [0, 27, 63])
def test_a_painted_patch_is_hot_exactly_where_it_was_painted(tiny, red_detector, size, patch):
    x0, y0, x1, y1 = tiny.geometry.patch_box(patch, size)
    photo = Image.new("RGB", size, (127, 127, 127))
    photo.paste((255, 0, 0), tuple(round(v) for v in (x0, y0, x1, y1)))
    values = vlsae.heatmap(tiny, red_detector, photo, 1, interpolation="nearest")
    assert values.shape == (size[1], size[0])
    y, x = np.unravel_index(np.nanargmax(values), values.shape)
    assert tiny.geometry.patch_at(x + 0.5, y + 0.5, size) == patch
    hot = np.nan_to_num(values) > 0.5 * np.nanmax(values)
    painted = np.zeros_like(hot)
    painted[round(y0) : round(y1), round(x0) : round(x1)] = True
    assert (hot & painted).sum() / (hot | painted).sum() > 0.85  # borders are rounded to pixels
    smooth = vlsae.heatmap(tiny, red_detector, photo, 1)
    y, x = np.unravel_index(np.nanargmax(smooth), smooth.shape)
    assert tiny.geometry.patch_at(x + 0.5, y + 0.5, size) == patch


def test_grids_are_the_codes_in_reading_order(tiny):
    sae = TopKDictionary(192, 16, k=3)
    drawn = vlsae.world.scenes(3)
    grids = latent_grids(tiny, sae, drawn, [2, 9], site="vision.4.resid_post")
    z = sae.encode(tiny.tokens(drawn, "vision.4.resid_post")[:, 1:]).detach()
    assert grids.shape == (3, 2, 8, 8)
    assert torch.equal(grids[1, 1].flatten(), z[1, :, 9])
    peak = z[0].amax(0)
    assert strongest_latents(tiny, sae, drawn[0], 3, "vision.4.resid_post") == peak.topk(3).indices.tolist()


def test_grids_from_a_store_are_the_models(tiny, store):
    """Up to the store's float16: the images of the fixture drawn again."""
    sae = ReLUDictionary(192, 16)
    drawn = vlsae.world.scenes(24, seed=5)
    fresh = latent_grids(tiny, sae, [drawn[3], drawn[20]], [2, 9], site=store.site)
    stored = stored_grids(store, sae, [3, 20], [2, 9])
    assert stored.shape == fresh.shape == (2, 2, 8, 8)
    assert torch.allclose(stored, fresh, atol=0.01 * float(fresh.max()))


def test_wrong_requests(tiny):
    sae = TopKDictionary(192, 16, k=3)
    photo = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="Latent 16 does not exist; this dictionary has 0 to 15"):
        vlsae.heatmap(tiny, sae, photo, 16, site="vision.4.resid_post")
    with pytest.raises(ValueError, match="does not know its site"):
        vlsae.heatmap(tiny, sae, photo, 1)
    with pytest.raises(ValueError, match="this dictionary reads"):
        vlsae.heatmap(tiny, TopKDictionary(8, 16, k=3), photo, 1, site="vision.4.resid_post")


def test_overlay_is_grey_where_cold_and_coloured_where_hot():
    photo = Image.new("RGB", (10, 10), (200, 100, 50))
    values = np.zeros((10, 10), np.float32)
    values[:5] = 2.0
    values[:, 9] = np.nan
    pixels = np.asarray(overlay(photo, values)).astype(int)
    assert np.ptp(pixels[7, 0]) == 0
    assert np.ptp(pixels[0, 0]) > 20
    assert pixels[7, 9].sum() < pixels[7, 0].sum()
    with pytest.raises(ValueError, match=r"\(5, 5\), the image \(height, width\) \(10, 10\)"):
        overlay(photo, values[:5, :5])
    with pytest.raises(ValueError, match="cmap='jet' is not offered"):
        overlay(photo, values, cmap="jet")


def test_contour_draws_the_border_of_the_region():
    values = np.zeros((40, 40), np.float32)
    values[10:30, 10:30] = 1
    pixels = np.asarray(contour(Image.new("RGB", (40, 40), (90, 90, 90)), values))
    assert (pixels[10, 15] == 255).all()
    assert (pixels[20, 20] == 90).all()
    assert (pixels[2, 2] == 90).all()


def test_reference_grid_shares_one_scale():
    """The same value has the same colour in both maps, though one map alone would have stretched it."""
    photos = [Image.new("RGB", (32, 32), "black")] * 2
    maps = [np.full((32, 32), 1.0), np.full((32, 32), 1.0)]
    maps[1][:16] = 4.0
    assert value_range(maps) == (0.0, 4.0)
    grid = np.asarray(reference_grid(photos, maps, side=32))
    gap = max(2, 32 // 24)
    first, second = grid[32 + gap : 64 + gap, :32], grid[32 + gap : 64 + gap, 32 + gap :]
    assert np.array_equal(first[25, 5], second[25, 5])
    assert not np.array_equal(first[5, 5], second[5, 5])
    assert np.asarray(color_bar((0.0, 4.0), 120)).shape == (30, 120, 3)
    with pytest.raises(ValueError, match="0 images and 0 maps"):
        reference_grid([], [])
