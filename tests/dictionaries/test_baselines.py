"""Dictionaries that need no training: exact where they must be, and worse than trained ones on planted data."""

import pytest
import torch

from tests.training.test_training import matched_cosine
from vlsae.dictionaries.baselines import BASELINES, KMeansDictionary, NMFDictionary, fit_baselines
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.metrics.matching import mcc, stability
from vlsae.training import train
from vlsae.world import planted


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sources():
    """Independent sources with heavy tails, mixed without rotation symmetry."""
    s = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(20_000, 6, generator=_generator(9)).clamp(1e-4, 1 - 1e-4))
    mixing = torch.randn(6, 6, generator=_generator(10)) + 2 * torch.eye(6)
    return mixing, s, s @ mixing + 1.0


def test_bases_with_all_coordinates_are_exact_and_pca_is_the_best_of_rank_k(sources):
    """Eckart and Young: the error of the k first axes is the sum of the other eigenvalues."""
    _, _, x = sources
    made = fit_baselines(x, k=6, n_latents=8)
    assert tuple(made) == BASELINES
    for name in ("pca", "ica", "random", "identity"):
        assert torch.allclose(made[name](x), x, atol=1e-3)
    centred = (x - x.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred / len(x)).flip(0)
    pca = made["pca"]
    rank2 = ((x - pca.b_dec) @ pca.W_enc)[:, :2] @ pca.W_dec[:2] + pca.b_dec
    assert (x - rank2).square().sum(1).mean().item() == pytest.approx(values[2:].sum().item(), rel=1e-4)


def test_ica_finds_independent_sources_where_pca_does_not(sources):
    mixing, s, x = sources
    ica, pca = ProjectionDictionary.ica(x, 6), ProjectionDictionary.pca(x, 6)
    assert mcc(ica.encode(x), s) > 0.99
    assert mcc(pca.encode(x), s) < 0.95
    assert stability(mixing, ica.atoms, signed=True).mean > 0.99


def test_nmf_finds_planted_parts():
    parts = torch.rand(5, 20, generator=_generator(11))
    parts = parts * (
        torch.arange(20) // 4 == torch.arange(5)[:, None]
    )  # parts that do not overlap: the split is unique
    codes = torch.rand(3000, 5, generator=_generator(13)) * (torch.rand(3000, 5, generator=_generator(14)) < 0.5)
    x = codes @ parts - 2.0
    sae = NMFDictionary.fit(x, 5)
    assert stability(parts, sae.atoms).mean > 0.97
    assert (x - sae(x)).square().sum() < 0.02 * (x - x.mean(0)).square().sum()
    assert ((NMFDictionary.fit(x, 5, k=2).encode(x) > 0).sum(1) <= 2).all()


def test_kmeans_finds_planted_clusters():
    centres = 4 * torch.randn(6, 5, generator=_generator(15))
    label = torch.randint(0, 6, (3000,), generator=_generator(16))
    x = centres[label] + 0.1 * torch.randn(3000, 5, generator=_generator(17))
    sae = KMeansDictionary.fit(x, 6)
    assert torch.cdist(centres, sae.atoms).min(1).values.max() < 0.1
    assert (sae.encode(x).sum(1) == 1).all()


def test_every_baseline_is_worse_than_a_trained_dictionary_on_planted_data():
    truth = planted(32, 64, 3)
    x, _ = truth.sample(20_000)
    options = {"n_latents": 64, "k": 3, "steps": 1500, "batch_size": 512, "lr": 3e-3, "progress": False}
    trained = train(x, "topk", dead_after_tokens=20_000, **options)
    test = truth.sample(2000, part=1)[0]
    error = (test - trained(test)).square().sum()
    for name, sae in fit_baselines(x[:5000], k=3, n_latents=64).items():
        assert (test - sae(test)).square().sum() > 2 * error, name
        assert matched_cosine(truth.atoms, trained.atoms).mean() > stability(truth.atoms, sae.atoms).mean
