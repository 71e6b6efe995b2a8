"""What each family promises beyond the contract."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vlsae.dictionaries.abs_topk import AbsTopKDictionary
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def test_formulas_by_numpy():
    """The encoders against their written formula in another library."""
    import numpy as np

    for sae in (ReLUDictionary(8, 20, seed=1), TopKDictionary(8, 20, k=4, seed=1)):
        with torch.no_grad():
            sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
            sae.b_enc.normal_(generator=torch.Generator().manual_seed(2))
        w_enc, b_enc, w_dec, b_dec = (p.detach().numpy() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
        z = np.maximum((X.numpy() - b_dec) @ w_enc + b_enc, 0)
        if sae.family == "topk":
            z[z < np.sort(z, 1)[:, [-4]]] = 0
        assert np.abs(sae.encode(X).detach().numpy() - z).max() < 1e-5
        assert np.abs(sae(X).detach().numpy() - (z @ w_dec + b_dec)).max() < 1e-5


def test_topk_keeps_at_most_k_and_exactly_k_where_it_can():
    sae = TopKDictionary(8, 20, k=5)
    z, positive = sae.encode(X), (sae.pre(X) > 0).sum(1)
    assert torch.equal((z > 0).sum(1), positive.clamp(max=5))
    with pytest.raises(ValueError, match="k=21 must lie between 1 and n_latents=20"):
        TopKDictionary(8, 20, k=21)


def test_topk_of_an_orthonormal_dictionary_is_the_best_nonnegative_approximation():
    """Card 7, test 6: against all pairs of atoms, d=8, k=2."""
    sae = TopKDictionary(8, 8, k=2)
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    with torch.no_grad():
        sae.W_dec.copy_(q)
        sae.W_enc.copy_(q.T)
    error = (X - sae(X)).square().sum(1)
    best = torch.stack(
        [(X - (X @ q[list(pair)].T).relu() @ q[list(pair)]).square().sum(1) for pair in combinations(range(8), 2)]
    ).amin(0)
    assert torch.allclose(error, best, atol=1e-5)


@pytest.mark.parametrize(
    ("sae", "k"),
    [(ReLUDictionary(8, 7), 7), (TopKDictionary(8, 7, k=3), 3), (AbsTopKDictionary(8, 7, k=3), 3)],
    ids=["relu", "topk", "abs_topk"],
)
def test_activations_are_projections_on_their_sets(sae, k):
    """Card 43, test 1: the nearest point with at most k entries, none negative but for AbsTopK, of all supports."""
    v = torch.randn(200, 7, generator=torch.Generator().manual_seed(6))
    allowed = v if sae.signed else v.relu()
    masks = torch.tensor(
        [[i in support for i in range(7)] for n in range(k + 1) for support in combinations(range(7), n)]
    )
    points = allowed[:, None] * masks
    nearest = points[torch.arange(200), (v[:, None] - points).square().sum(-1).argmin(1)]
    assert torch.equal(sae.activate(v), nearest)


def test_pca_is_sklearns():
    """With all but k components cut, sklearn's reconstruction is the one of the k first axes."""
    x = X @ torch.diag(torch.linspace(3, 0.1, 8)) + 5
    basis = ProjectionDictionary.pca(x, k=8)
    reference = PCA(8).fit(x.numpy())
    cosine = (basis.atoms.numpy() * reference.components_).sum(1)
    assert abs(abs(cosine) - 1).max() < 1e-4
    assert torch.allclose(basis(x), x, atol=1e-4)


def test_bases_are_orthonormal_and_complete():
    for basis in (
        ProjectionDictionary.neurons(X, 8),
        ProjectionDictionary.rotation(X, 8),
        ProjectionDictionary.pca(X, 8),
    ):
        assert torch.allclose(basis.atoms @ basis.atoms.T, torch.eye(8), atol=1e-5)
        assert torch.allclose(basis(X), X, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be orthonormal"):
        ProjectionDictionary(4, 5, k=1)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_topk_is_the_formula_in_numpy(k):
    """Card 7, test 9: the forward pass of the paper's equations 1 and 2, written out."""
    sae = TopKDictionary(6, 16, k=k, seed=3)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(2))
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(4))
    enc, dec, b_enc, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    expected = np.empty((40, 6))
    for row, token in enumerate(x.double().numpy()):
        pre = (token - b_dec) @ enc + b_enc
        chosen = np.argsort(-pre)[:k]
        expected[row] = sum(max(pre[i], 0) * dec[i] for i in chosen) + b_dec
    assert np.abs(sae(x).detach().numpy() - expected).max() < 1e-5
