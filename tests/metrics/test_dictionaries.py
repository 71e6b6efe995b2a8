"""Metrics of dictionaries: matchings, coherence, stitching, amortisation, in closed form or against search."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard

from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics.coherence import babel, coactive_babel, coherence, effective_rank, modality_score
from vlsae.metrics.geometry import (
    connectivity,
    negative_interference,
    out_of_data,
    plausibility,
    soft_identifiability,
    stable_rank,
)
from vlsae.metrics.matching import mcc, mmcs, stability
from vlsae.metrics.stitching import (
    classify_latents,
    combined_curve,
    insertion_effect,
    replacement_effect,
    swap_groups,
)
from vlsae.training.meta import MetaDictionary, train_meta
from vlsae.world import planted


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- matchings -------------------------------------------------------------------------------------------------------


def test_stability_is_the_best_of_all_permutations():
    A, B = torch.randn(6, 4, generator=_generator(1)), torch.randn(6, 4, generator=_generator(2))
    cosine = F.normalize(A, dim=1) @ F.normalize(B, dim=1).T
    best = max(cosine[range(6), list(order)].mean().item() for order in itertools.permutations(range(6)))
    assert stability(A, B).mean == pytest.approx(best, abs=1e-6)
    assert stability(A, -A, signed=True).mean == pytest.approx(1, abs=1e-6)
    assert stability(torch.eye(8)[:4], torch.eye(8)[4:]).mean == 0
    with pytest.raises(ValueError, match="width 4 and 3 cannot be compared"):
        stability(A, torch.ones(2, 3))


def test_chance_levels_are_those_of_random_dictionaries():
    """MMCS of random unit atoms: .40 for 64 in R^32, .33 for 128 in R^64."""
    for d, n, expected in ((32, 64, 0.40), (64, 128, 0.33)):
        scores = [mmcs(torch.randn(n, d, generator=_generator(s)), torch.randn(n, d, generator=_generator(50 + s)))
                  for s in range(8)]  # fmt: skip
        assert np.mean(scores) == pytest.approx(expected, abs=0.02)


def test_mcc_does_not_see_order_and_scale():
    z = torch.rand(300, 7, generator=_generator(1))
    order = torch.randperm(7, generator=_generator(2))
    assert mcc(3 * z[:, order] + 1, z) == pytest.approx(1, abs=1e-9)
    assert mcc(torch.rand(4000, 7, generator=_generator(3)), torch.rand(4000, 7, generator=_generator(4))) < 0.06


# ---- coherence -------------------------------------------------------------------------------------------------------


def test_coherence_and_babel_of_dirac_and_hadamard():
    """Every atom has inner product 1/8 with the 64 of the other basis and 0 with its own."""
    D = torch.cat([torch.eye(64), torch.from_numpy(hadamard(64) / 8.0).float()])
    assert coherence(D) == pytest.approx(1 / 8)
    for r in (1, 5, 64, 100):
        assert babel(D, r) == pytest.approx(min(r, 64) / 8)
    assert coherence(torch.eye(5)) == 0
    with pytest.raises(ValueError, match="r=0 must lie"):
        babel(D, 0)


def test_effective_rank_of_known_spectra():
    assert effective_rank(3 * torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(5, 1) @ torch.ones(1, 4)) == pytest.approx(1, abs=1e-6)
    energy = torch.tensor([0.5, 0.25, 0.25])
    assert effective_rank(torch.diag(energy.sqrt())) == pytest.approx(np.exp(0.5 * np.log(2) + 0.5 * np.log(4)))


def test_babel_of_what_is_used_together():
    """Dirac and Hadamard: two of one basis never overlap, one of each by 1/sqrt 8; `babel(r)` is r/sqrt 8."""
    atoms = torch.cat([torch.eye(8), torch.tensor(hadamard(8)).float() / 8**0.5])
    z = torch.zeros(4, 16)
    z[0, [0, 3]] = z[1, [0, 8]] = z[2, [0, 8, 9]] = 1.0
    assert coactive_babel(z, atoms).tolist() == pytest.approx([0, 8**-0.5, 2 * 8**-0.5, 0])
    everything = torch.ones(1, 16)
    assert coactive_babel(everything, atoms)[0] == pytest.approx(babel(atoms, 15), abs=1e-6)


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_distance_from_data_and_plausibility():
    points = torch.eye(4)
    assert out_of_data(3 * points[:2], points) == 0
    assert out_of_data(torch.ones(1, 4), points) == pytest.approx(0.5)  # cosine 1/2 with every axis
    assert out_of_data(-points[:1], points[:1]) == 2
    assert plausibility(torch.eye(4)[:3], torch.eye(4)) == pytest.approx(0.75)


def test_stable_rank_of_known_spectra():
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))) == pytest.approx(6 / 4)
    assert stable_rank(torch.ones(5, 3)) == pytest.approx(1)


def test_connectivity_and_negative_interference():
    z = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert connectivity(z) == 1 - 5 / 16  # (0,0) (0,1) (1,0) (1,1) (2,2); the last never fires
    atoms = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]])
    # only 0 and 1 are active together: the matrix is 2 * .6 on both sides of the diagonal, of spectral norm 1.2
    assert negative_interference(z, atoms) == pytest.approx(1.2)
    assert negative_interference(z, torch.eye(4)) == 0


def test_soft_identifiability_is_the_best_of_all_latents_and_thresholds():
    z = torch.randn(40, 5, generator=_generator(3)).mul(2).round().clamp_min(0)  # with many ties
    labels = torch.rand(40, 3, generator=_generator(4)) < 0.3
    thresholds = torch.cat([torch.tensor([-1.0]), z.unique()])
    guesses = z[None] > thresholds[:, None, None]
    expected = (guesses[..., None] == labels[None, :, None]).float().mean(1).amax((0, 1))
    assert torch.allclose(soft_identifiability(z, labels).float(), expected)
    assert soft_identifiability(labels.float(), labels).min() == 1
    with pytest.raises(ValueError, match="40 codes and 2 labels"):
        soft_identifiability(z, labels[:2])


def test_collages_of_known_objects_are_identified_by_their_own_atoms():
    """Card 18: pooled vectors of four of 12 objects; the oracle's codes tell each object, a rotation's do not."""
    there = torch.rand(600, 12, generator=_generator(5)).topk(4, dim=1).indices
    labels = torch.zeros(600, 12, dtype=torch.bool).scatter(1, there, True)
    atoms = torch.linalg.qr(torch.randn(24, 24, generator=_generator(6)))[0][:12]
    x = labels.float() @ atoms / 4
    assert soft_identifiability((x @ atoms.T).clamp_min(1e-3), labels).min() == 1
    rotated = torch.linalg.qr(torch.randn(24, 24, generator=_generator(7)))[0]
    assert soft_identifiability(x @ rotated.T, labels).mean() < 0.85


def test_modality_scores_of_planted_modalities():
    """Card 41, test 7: atoms of one modality at 1 and 0, shared ones at a half."""
    truth = planted(32, 48, 3, seed=2)
    image, text = truth.sample(4000, part=1)[1], truth.sample(4000, part=2)[1]
    image[:, :8], text[:, 8:16] = 0, 0
    score = modality_score(image, text)
    assert (score[:8] == 0).all()
    assert (score[8:16] == 1).all()
    assert (score[16:] - 0.5).abs().max() < 0.1


# ---- stitching and meta-dictionaries ---------------------------------------------------------------------------------


def _exact(atoms):
    """A ReLU dictionary that reads its orthonormal (or given) atoms by their dual: exact on their sparse sums."""
    sae = ReLUDictionary(atoms.shape[1], len(atoms))
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(torch.linalg.pinv(atoms))
        sae.b_dec.zero_()
    return sae


def _orthonormal():
    Q = torch.linalg.qr(torch.randn(16, 16, generator=_generator(1)))[0]
    z = torch.rand(4000, 12, generator=_generator(2)) * (torch.rand(4000, 12, generator=_generator(3)) < 0.3)
    return Q, z, z @ Q[:12]


def test_new_and_refined_latents_and_what_inserting_them_does():
    """Card 13, test 1: a new latent lowers the error by `E z_j^2`, one that is there already raises it by as much."""
    Q, z, x = _orthonormal()
    narrow, wide = _exact(Q[:7]), _exact(Q[:12])
    new, best = classify_latents(narrow, wide)
    assert new.tolist() == [False] * 7 + [True] * 5
    assert best[:7].min() > 0.999
    energy = z.double().square().mean(0)
    effect = insertion_effect(narrow, wide, x)
    assert torch.allclose(effect[7:], -energy[7:], atol=1e-5)
    assert torch.allclose(effect[:7], energy[:7], atol=1e-5)


def test_the_curve_ends_at_both_dictionaries():
    """Card 13, test 2."""
    Q, _, x = _orthonormal()
    narrow, wide = _exact(Q[:7]), _exact(Q[:12])
    with torch.no_grad():
        narrow.b_dec.fill_(0.1)
    active, errors = combined_curve(narrow, wide, x)
    for at, sae in ((0, narrow), (-1, wide)):
        assert errors[at].item() == pytest.approx((x - sae(x)).double().square().sum(1).mean().item(), abs=1e-9)
        assert active[at].item() == pytest.approx((sae.encode(x) != 0).sum(1).float().mean().item(), abs=1e-5)
    assert len(errors) == len(swap_groups(narrow, wide)) + 1 == 13


def test_a_parent_that_splits_into_two_children():
    """Card 13, test 3: children at cosine .85 to the parent: errors .2775, .7225 and 0 a unit of energy."""
    up, side = torch.eye(3)[0], torch.eye(3)[1]
    children = torch.stack([0.85 * up + s * (1 - 0.85**2) ** 0.5 * side for s in (1, -1)])
    narrow, wide = _exact(up[None]), _exact(children)
    assert (children[0] @ children[1]).item() == pytest.approx(0.445)
    s = 1 + torch.rand(500, 1, generator=_generator(4))
    x, energy = s * children[:1], s.square().mean().item()
    assert (x - narrow(x)).square().sum(1).mean().item() == pytest.approx(0.2775 * energy, rel=1e-4)
    assert (0.2775 * energy + insertion_effect(narrow, wide, x)[0].item()) == pytest.approx(0.7225 * energy, rel=1e-4)
    groups = swap_groups(narrow, wide)
    assert [(g.narrow, g.wide) for g in groups] == [([0], [0, 1])]
    assert replacement_effect(narrow, wide, x, groups)[0].item() == pytest.approx(-0.2775 * energy, rel=1e-4)


def test_transforms_have_no_common_space():
    narrow, wide = ReLUDictionary(3, 2), ReLUDictionary(3, 4)
    narrow.transform = type(narrow.transform).fit(torch.randn(20, 3), "sqrt_d")
    with pytest.raises(ValueError, match="no common space; fold them"):
        insertion_effect(narrow, wide, torch.randn(5, 3))


def test_meta_latents_are_what_atoms_are_made_of():
    """Card 13, test 4: atoms that are sums of 2 of 16 directions: found, and nearly all variance explained.

    120 orthonormal atoms have no parts: 16 meta-latents explain at most 16 / 119 of them (a bound of the rank).
    """
    parts = torch.linalg.qr(torch.randn(24, 24, generator=_generator(5)))[0][:16]
    pairs = torch.combinations(torch.arange(16), 2)
    base = TopKDictionary(24, 120, k=4)
    with torch.no_grad():
        weights = torch.rand(120, 2, 1, generator=_generator(6))
        base.W_dec.copy_(F.normalize((weights * parts[pairs]).sum(1), dim=1))
    recipe = {"n_latents": 16, "k": 2, "arch": "topk", "steps": 2500, "lr": 3e-3}
    meta = train_meta(base, progress=False, **recipe)
    assert mmcs(parts, meta.meta.atoms) >= 0.95
    assert meta.explained_variance >= 0.9
    named = (meta.meta.atoms @ parts.T).argmax(1)
    parts_of = meta.explain(17)
    assert {int(named[number]) for number, _, _ in parts_of} == set(pairs[17].tolist())
    assert all(int(named[number]) in pairs[other].tolist() for number, _, top in parts_of for other in top)
    whole = TopKDictionary(120, 120, k=4)
    with torch.no_grad():
        whole.W_dec.copy_(torch.eye(120))
    atomic = train_meta(whole, progress=False, **{**recipe, "steps": 600})
    assert isinstance(atomic, MetaDictionary)
    assert 0.05 < atomic.explained_variance <= 16 / 119 + 1e-3
    with pytest.raises(ValueError, match="Latent 120 does not exist"):
        atomic.explain(120)
