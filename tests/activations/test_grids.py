"""Patch grids made common: hand-written weights, linear fields, identity, and stores of two models."""

import pytest
import torch

from vlsae import extract
from vlsae.activations import ActivationStore, OnGrid, StoreError, common_grid, resample_patches
from vlsae.training import train_universal
from vlsae.world import scenes


@pytest.fixture(scope="module")
def stores(tiny, tiny16, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    return {
        model.spec: extract(model, scenes(20, seed=5), out=folder / model.spec, tokens="patches+cls",
                            batch_size=10, shard_images=8, dtype=dtype, progress=False)
        for model, dtype in ((tiny, "float16"), (tiny16, "float32"))
    }  # fmt: skip


def _triangle(n: int, m: int) -> torch.Tensor:
    """The closed form of one axis, `[m, n]`: triangles of the wider patch's half-width, normalised inside the image."""
    scale = n / m
    centre = (torch.arange(m, dtype=torch.double)[:, None] + 0.5) * scale
    weights = (1 - (torch.arange(n) + 0.5 - centre).abs() / max(scale, 1.0)).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("grid, to", [((8, 8), (4, 4)), ((16, 12), (14, 5)), ((4, 4), (4, 2))])
def test_resampling_is_a_product_of_triangles(grid, to):
    x = torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0))
    rows, columns = (_triangle(n, m).float() for n, m in zip(grid, to, strict=True))
    expected = torch.einsum("ar,bc,nrcd->nabd", rows, columns, x.unflatten(1, grid)).flatten(1, 2)
    assert torch.allclose(resample_patches(x, grid, to), expected, atol=1e-6)


def test_linear_fields_stay_linear_inside():
    """Place as activation: a 4 x 4 grid must find its own centres, but for border patches, whose triangle is cut."""
    place = (torch.arange(8) + 0.5) / 8
    x = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1).reshape(1, 64, 2)
    centres = (torch.arange(4) + 0.5) / 4
    found = resample_patches(x, (8, 8), (4, 4)).reshape(4, 4, 2)
    assert torch.allclose(found[1:3, :, 0], centres[1:3, None].expand(2, 4), atol=1e-6)
    assert torch.allclose(found[:, 1:3, 1], centres[None, 1:3].expand(4, 2), atol=1e-6)
    edge = (0.75 * 0.5 + 0.75 * 1.5 + 0.25 * 2.5) / 1.75 / 8  # patches 0, 1, 2 of the old grid
    assert torch.allclose(found[0, :, 0], torch.full((4,), edge), atol=1e-6)


def test_equal_grids_are_left_alone(stores):
    x = torch.randn(2, 16, 3)
    assert resample_patches(x, (4, 4), (4, 4)) is x
    assert common_grid(stores)["tiny16"] is stores["tiny16"]
    with pytest.raises(ValueError, match=r"\(2, 16, 3\); give \[images, 8 \* 8, d\]"):
        resample_patches(x, (8, 8), (4, 4))


def test_a_store_on_another_grid_is_its_tokens_resampled(stores):
    """Across shards of 8, in order and shuffled: the same rows, and class tokens as they were."""
    store, other = stores["tiny"], common_grid(stores)["tiny"]
    x = store.images(0, 20)
    expected = torch.cat([x[:, :1], resample_patches(x[:, 1:], (8, 8), (4, 4))], 1)
    assert torch.allclose(other.images(0, 20), expected, atol=1e-6)  # interpolate may sum other batches differently
    assert other.token_roles == ["cls"] + ["patch"] * 16
    assert (other.geometry.rows, other.geometry.columns, len(other)) == (4, 4, 20 * 17)
    assert torch.allclose(other.mean(), expected.flatten(0, 1).mean(0), atol=1e-5)
    drawn = torch.cat([batch for batch, _ in other.shuffled(50)])
    assert torch.allclose(drawn.sum(1).sort().values, expected.sum(-1).flatten().sort().values, atol=1e-4)
    assert len({store.fingerprint, other.fingerprint, OnGrid(store, (2, 8)).fingerprint}) == 3


def test_shuffled_tokens_of_two_models_stay_together(stores):
    """Readers of both grids draw one order: rows are equal where models are, and counted alike where they are not."""
    here = common_grid({"a": stores["tiny"], "b": stores["tiny"], "c": stores["tiny16"]})
    for (a, at), (b, _), (c, reached) in zip(*(s.shuffled(64) for s in here.values()), strict=True):
        assert torch.equal(a, b)
        assert (len(a), at) == (len(c), reached)
    options = {"n_latents": 16, "k": 2, "steps": 2, "batch_size": 64, "progress": False}
    universal = train_universal({"tiny": here["a"], "tiny16": here["c"]}, "topk", **options)
    assert universal.translate(here["a"][0], "tiny", "tiny16").shape == here["c"][0].shape
    with pytest.raises(StoreError, match="brought to one by vlsae.activations.common_grid"):
        train_universal(stores, "topk", **options)


def test_what_has_no_grid_is_refused(stores, tiny, tmp_path):
    with pytest.raises(StoreError, match="no stores"):
        common_grid({})
    some = {"tokens": "random_k", "random_k": 5, "progress": False}
    with pytest.raises(StoreError, match="does not hold all 8 x 8 patches"):
        common_grid({"tiny": extract(tiny, scenes(2), out=tmp_path / "some", **some)})
    bare = extract(tiny, scenes(2), out=tmp_path / "bare", tokens="patches", progress=False)
    with pytest.raises(StoreError, match="holds no class tokens"):
        OnGrid(bare, (4, 4), cls=True)
    assert OnGrid(bare, (4, 4)).token_roles == ["patch"] * 16
    assert common_grid({"a": bare, "b": stores["tiny16"]})["b"].token_roles == ["patch"] * 16
    assert isinstance(common_grid({"a": bare.path})["a"], ActivationStore)
