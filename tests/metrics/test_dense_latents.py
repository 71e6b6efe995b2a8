"""Dense latents on planted data with a signal of both signs (card 48)."""

import pytest
import torch
import torch.nn.functional as F

from vlsae.dictionaries.base import Codes
from vlsae.dictionaries.baselines import KMeansDictionary
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics import dense_latents as module
from vlsae.metrics.dense_latents import ablate_subspace, antipodality, dense_latents, density
from vlsae.training import train
from vlsae.world import planted

D, N_ATOMS, N = 48, 96, 12_000
RECIPE = {"n_latents": N_ATOMS, "k": 3, "steps": 800, "batch_size": 512, "lr": 3e-3, "progress": False}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _dictionary(atoms, reads=None, family=ReLUDictionary, **settings):
    sae = family(atoms.shape[1], len(atoms), **settings)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_((atoms if reads is None else reads).T)
    return sae


def test_a_pair_writes_a_signal_of_both_signs():
    """Card 48, test 1: `relu(a) - relu(-a) = a`, each half on half of the tokens, of .31 behind a threshold of .5."""
    u = F.normalize(torch.randn(D, generator=_generator(1)), dim=0)
    x = torch.randn(40_000, 1, generator=_generator(2)) * u
    sae = _dictionary(torch.stack([u, -u]))
    assert torch.allclose(sae(x), x, atol=1e-5)
    # the standard deviation of a share of 40,000 is at most .0025
    assert torch.allclose(density(sae.encode_sparse(x)), torch.full((2,), 0.5, dtype=torch.float64), atol=0.01)
    behind = _dictionary(torch.stack([u, -u]), family=BatchTopKDictionary, k=1)
    behind.threshold.fill_(0.5)
    assert torch.allclose(density(behind.encode(x)), torch.full((2,), 0.3085, dtype=torch.float64), atol=0.01)
    found = antipodality(sae)
    assert found.score.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found.encoder_cosine.tolist() == found.decoder_cosine.tolist() == pytest.approx([-1, -1], abs=1e-5)
    assert found.pairs() == [(0, 1)]
    scores = dense_latents(sae, sae.encode(x))
    assert [scores[name].value for name in ("dense", "dense_codes", "dense_antipodal")] == [1, 1, 1]


def test_copies_and_half_opposites_are_no_pairs():
    """The paper's product is 1 for a latent and its copy too, and 1 for nothing else here."""
    e = torch.eye(4)
    copies = antipodality(_dictionary(torch.stack([e[0], e[0], e[1]])))
    assert copies.score.tolist() == [0, 0, 0] and copies.partner.tolist() == [-1, -1, -1] and copies.pairs() == []
    only_written = antipodality(_dictionary(torch.stack([e[0], -e[0]]), reads=torch.stack([e[0], e[0]])))
    assert only_written.score.tolist() == [0, 0]


def test_it_is_the_definition(monkeypatch):
    """Against a loop over all pairs, in blocks of 7 rows."""
    monkeypatch.setattr(module, "BLOCK", 7)
    sae = ReLUDictionary(6, 40)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(6, 40, generator=_generator(3)))
    reads, atoms = sae.W_enc.detach().T, sae.atoms
    read = F.cosine_similarity(reads[:, None], reads[None], dim=2)
    wrote = F.cosine_similarity(atoms[:, None], atoms[None], dim=2)
    found = antipodality(sae)
    for i in range(40):
        products = [(float(read[i, j] * wrote[i, j]), j) for j in range(40) if read[i, j] < 0 and wrote[i, j] < 0]
        best, j = max(products)
        assert (found.score[i].item(), int(found.partner[i])) == (pytest.approx(best, abs=1e-6), j)
        assert found.encoder_cosine[i].item() == pytest.approx(read[i, j].item(), abs=1e-6)
        assert found.decoder_cosine[i].item() == pytest.approx(wrote[i, j].item(), abs=1e-6)


def test_density_counts_what_is_active():
    z = torch.tensor([[0.0, 2.0, -1.0], [0.0, 1.0, 0.0]])
    stored = Codes(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1]), torch.tensor([2.0, 0.0, 1.0]), 2, 3)
    assert density(z).tolist() == density(Codes.from_dense(z)).tolist() == [0, 1, 0.5]
    assert density(stored).tolist() == [0, 1, 0]  # a stored zero is not active


def test_the_span_is_gone_and_the_rest_is_untouched():
    x, directions = torch.randn(3, 5, 8, generator=_generator(4)), torch.randn(2, 8, generator=_generator(5))
    dependent = torch.cat([directions, 3 * directions[:1] - directions[1:], torch.zeros(1, 8)])
    left = ablate_subspace(x, dependent)
    assert (left @ directions.T).abs().max() < 1e-5
    assert torch.allclose(ablate_subspace(left, directions), left, atol=1e-6)
    outside = x - left
    assert torch.linalg.matrix_rank(outside.flatten(0, 1), tol=1e-4) == 2
    assert torch.allclose((outside * left).sum(-1), torch.zeros(3, 5), atol=1e-4)  # an orthogonal projection


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dense_direction_makes_a_pair_unless_codes_are_signed(seed):
    """Card 48, test 2. `x = two of 96 atoms + c u` with `c ~ N(0, 1)`, and three active latents a token.

    TopK spends two dense latents on u, AbsTopK one of both signs; without u in the data none is dense, and without the
    span of a sparse atom nothing changes. Measured: |cos| with u at least .99, antipodality .98 to 1.00, against .08 to
    .12 of AbsTopK's dense latent; a sparse latent fires on 3 / 96 of the tokens on average.
    """
    world = planted(d=D, n_atoms=N_ATOMS, k=2, seed=seed)
    sparse, _ = world.sample(N)
    generator = _generator(50 + seed)
    u = F.normalize(torch.randn(D, generator=generator), dim=0)
    x = sparse + torch.randn(N, 1, generator=generator) * u

    def trained(family, data):
        sae = train(data, family, **RECIPE)
        return sae, (density(sae.encode_sparse(data)) > 0.1).nonzero()[:, 0].tolist()

    for data in (x, ablate_subspace(x, world.atoms[:1])):
        sae, dense = trained("topk", data)
        assert antipodality(sae).pairs() == [tuple(dense)]
        assert sorted((sae.atoms[dense] @ u).tolist()) == pytest.approx([-1, 1], abs=0.03)
        assert dense_latents(sae, sae.encode_sparse(data))["dense_antipodal"].value == 1
    signed, dense = trained("abs_topk", x)
    assert antipodality(signed).pairs() == [] and len(dense) == 1
    assert abs(float(signed.atoms[dense[0]] @ u)) > 0.97
    both = signed.encode(x)[:, dense[0]]
    assert 0.4 < (both > 0).sum() / (both != 0).sum() < 0.6
    assert trained("topk", ablate_subspace(x, u[None]))[1] == []


def test_messages():
    with pytest.raises(ValueError, match="needs at least one vector"):
        density(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"Directions are \[2, 3\]; expected \[m, 4\]"):
        ablate_subspace(torch.randn(5, 4), torch.randn(2, 3))
    with pytest.raises(ValueError, match="not all 0"):
        ablate_subspace(torch.randn(5, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="Codes have 3 latents; expected the 8 of the dictionary"):
        dense_latents(ReLUDictionary(4, 8), torch.ones(2, 3))
    with pytest.raises(ValueError, match="'kmeans' has no linear encoder W_enc to compare"):
        antipodality(KMeansDictionary(4, 8))
