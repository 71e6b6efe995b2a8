"""Multi-layer dictionaries: planted ranges of layers, equal layers, one layer, drifting bases."""

import pytest
import torch
import torch.nn.functional as F

from vlsae import extract
from vlsae.activations import StoreError
from vlsae.activations.layers import LayerActivations
from vlsae.dictionaries.lens import LensMap
from vlsae.metrics.layers import layer_distribution, layer_variance
from vlsae.metrics.matching import max_cosine
from vlsae.metrics.reconstruction import reconstruction
from vlsae.training import train
from vlsae.world import scenes

L, ATOMS, D = 4, 12, 24
OPTIONS = {"n_latents": 24, "k": 4, "steps": 1200, "batch_size": 512, "lr": 3e-3, "progress": False}


def _codes(z, n=4000):
    """`[tokens, atoms]` amounts of concepts, each with probability .12."""
    generator = torch.Generator().manual_seed(z)
    return (torch.rand(n, ATOMS, generator=generator) < 0.12) * (1 + torch.rand(n, ATOMS, generator=generator))


def _basis(seed=3):
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))[0]


def _encoded(sae, x):
    return sae.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]).detach()


def test_planted_ranges_of_layers_are_recovered():
    """Card 15: atom j is there at layers a_j to b_j only, and its latent has that support and mean."""
    first = torch.arange(ATOMS) % L
    last = (first + torch.arange(ATOMS) // L).clamp_max(L - 1)
    layer = torch.arange(L)[:, None]
    there = (first <= layer) & (layer <= last)
    atoms = _basis()[:ATOMS]
    x = (_codes(0)[:, None] * there) @ atoms
    sae = train(LayerActivations(x), "topk", **{**OPTIONS, "k": 2, "steps": 3000})
    cosine, latent = max_cosine(atoms, sae.atoms)
    found = layer_distribution(_encoded(sae, (_codes(1)[:, None] * there) @ atoms))[latent]
    assert cosine.min() > 0.99
    known = (there / there.sum(0)).T.double()
    assert (found - known).abs().max() < 0.1  # some latents mix two atoms a little: .08 as measured
    assert ((found @ torch.arange(L).double()) - (first + last) / 2).abs().max() < 0.15


def test_equal_layers_are_one_layer():
    """The same tokens at L equal layers have the gradient of one: equal up to the order of sums over 15 steps."""
    x = _codes(0, 1000) @ _basis()[:ATOMS]
    options = {**OPTIONS, "steps": 15, "lr": 1e-3, "dead_policy": "none", "b_dec_init": "zeros", "engine": "torch"}
    one = train(x, "topk", **{**options, "batch_size": 100})
    several = train(LayerActivations(x[:, None].expand(-1, L, -1)), "topk", **{**options, "batch_size": 100 * L})
    assert torch.allclose(one.W_dec, several.W_dec, atol=1e-4)
    alone = train(LayerActivations(x[:, None]), "topk", **{**options, "batch_size": 100})
    assert torch.equal(alone.W_dec, one.W_dec)


def test_a_lens_undoes_a_drift_of_the_basis():
    """Card 15: atoms turned at each layer have a latent a layer; behind the lens, one latent for all layers."""
    turns = torch.stack([_basis(seed) for seed in range(L)])
    x = torch.einsum("na,ad,lde->nle", _codes(0), _basis(9)[:ATOMS], turns)
    x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    lens = LensMap.fit(x, ridge=1e-4)
    seen = lens(x)
    with_lens = layer_variance(_encoded(train(LayerActivations(seen), "topk", **OPTIONS), seen))
    without = layer_variance(_encoded(train(LayerActivations(x), "topk", **{**OPTIONS, "n_latents": 64}), x))
    assert with_lens.within_latent > 0.99 * (L**2 - 1) / 12
    assert without.latent_ratio < 0.2  # 48 atoms in 24 dimensions are not all found


def test_a_lens_is_undone_where_it_has_an_inverse():
    generator = torch.Generator().manual_seed(0)
    A, b = 0.1 * torch.randn(3, 8, 8, generator=generator), torch.randn(3, 8, generator=generator)
    x = torch.randn(20, 3, 8, generator=generator)
    lens = LensMap(A, b)
    assert torch.allclose(lens.inverse(lens(x)), x, atol=1e-4)
    with pytest.raises(ValueError, match="positive ridge"):
        LensMap.fit(x, ridge=0.0)


def test_every_vector_is_standardised_and_back():
    """The paper's standardisation: layers of any size weigh alike, and the reconstruction has its units again."""
    x = (_codes(0, 2000) @ _basis()[:ATOMS])[:, None] * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None]
    x = x + 5
    sae = train(LayerActivations(x), "topk", **{**OPTIONS, "input_transform": "layer_norm", "steps": 600})
    shares = [reconstruction(sae, x[:, layer])["ev_centred"].value for layer in range(L)]
    assert max(shares) - min(shares) < 0.01
    assert min(shares) > 0.8


def test_blocks_of_the_tiny_clip(tiny, tmp_path):
    drawn = scenes(16, seed=5)
    sites = ["vision.-3.resid_post", "vision.-2.resid_post"]
    stores = [
        extract(tiny, drawn, out=tmp_path / str(i), site=site, shard_images=8, batch_size=8, progress=False)
        for i, site in enumerate(sites)
    ]
    both = LayerActivations(stores)
    x = torch.cat([batch.unflatten(0, (-1, 2)) for batch, _ in both.shuffled(200)])
    assert x.shape == (len(stores[0]), 2, both.d)
    assert F.cosine_similarity(x[:, 0], x[:, 1]).mean() > F.cosine_similarity(x[:, 0], x[:, 1].roll(1, 0)).mean() + 0.1
    options = {**OPTIONS, "n_latents": 128, "k": 8, "steps": 150, "input_transform": "layer_norm"}
    parts = layer_variance(_encoded(train(both, "topk", **options), x))
    assert parts.total == pytest.approx(parts.within_latent + parts.between_latents, abs=1e-9)
    assert 0 < parts.token_ratio <= 1


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(StoreError, match=r"give \[N, L, d\]"):
        LayerActivations(torch.zeros(3, 4))
    with pytest.raises(StoreError, match="There are no layers"):
        LayerActivations([])
