"""Metrics of dictionaries: matchings, coherence, stitching, amortisation, in closed form or against search."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard

from tests.training.test_training import matched_cosine
from vlsae import infer
from vlsae.dictionaries.baselines import BASELINES, KMeansDictionary, NMFDictionary, fit_baselines
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics.amortisation import amortisation_gap, worst_case_error
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
from vlsae.splice.inference import lasso_objective
from vlsae.training import train
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


# ---- inference and amortisation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "trained", "inverse"])
def test_no_encoder_beats_the_worst_case_bound(kind):
    """Card 30: `eps >= sqrt(N - M) / (2 N)` for encoders of any kind, here 24 sources in 12 dimensions."""
    truth = planted(12, 24, 2, seed=1)
    if kind == "trained":
        sae = train(truth.sample(20_000)[0], "relu", n_latents=24, l1=0.1, steps=400, lr=3e-3, progress=False)
        W, b = sae.W_enc.detach() @ (truth.atoms @ sae.W_enc.detach()).pinverse() @ torch.eye(24), sae.b_enc.detach()
    elif kind == "inverse":
        W, b = torch.linalg.pinv(truth.atoms), torch.zeros(24)
    else:
        W, b = torch.randn(12, 24, generator=_generator(3)) / 5, torch.zeros(24)
    error, bound = worst_case_error(W, b, truth.atoms)
    assert bound == pytest.approx(12**0.5 / 48)
    assert error >= bound
    assert worst_case_error(torch.eye(6), torch.zeros(6), torch.eye(6)) == (0.0, 0.0)


def test_optimisation_recovers_codes_that_the_encoder_cannot():
    """Below coherence 1 / (2 K - 1) pursuit is exact (Tropp 2004); the encoder's codes are not."""
    D = torch.cat([torch.eye(64), torch.from_numpy(hadamard(64) / 8.0).float()])
    z = torch.rand(600, 128, generator=_generator(4)).argsort(1) < 4
    z = z * (1 + torch.rand(600, 128, generator=_generator(5)))
    sae = TopKDictionary(64, 128, k=4)
    with torch.no_grad():
        sae.W_dec.copy_(D)
        sae.W_enc.copy_(D.T)
    x = z @ D
    assert torch.allclose(infer(sae, x, "omp", k=4), z, atol=1e-4)
    assert torch.allclose(infer(sae, x, "lasso", l1=1e-3), z, atol=5e-3)
    assert (sae.encode(x) - z).abs().max() > 0.1
    assert mcc(infer(sae, x, "omp", k=4), z) > 0.999
    gap = amortisation_gap(sae, x)
    assert gap.optimised < 1e-6
    assert gap.gap > 0.01
    assert gap.l0 == pytest.approx(4)


def test_an_orthonormal_dictionary_has_no_gap():
    """The encoder is the pursuit, and the lasso the soft threshold in closed form."""
    sae = TopKDictionary(8, 8, k=3)
    Q = ProjectionDictionary(8, 8, k=8, seed=2)
    with torch.no_grad():
        sae.W_dec.copy_(Q.W_dec)
        sae.W_enc.copy_(Q.W_enc)
        sae.b_dec.fill_(0.3)
    x = torch.randn(50, 8, generator=_generator(6))
    assert amortisation_gap(sae, x).gap == pytest.approx(0, abs=1e-5)
    soft = torch.relu((x - 0.3) @ Q.W_enc - 0.2)
    assert torch.allclose(infer(sae, x, "lasso", l1=0.4), soft, atol=1e-4)
    assert torch.allclose(infer(sae, x, "refine", l1=0.4), soft, atol=1e-4)


def test_refinement_never_raises_the_objective_and_reaches_the_lasso():
    sae = TopKDictionary(16, 40, k=5, seed=3)
    x = torch.randn(60, 16, generator=_generator(7))
    target = x - sae.b_dec.detach()

    def level(z):
        return lasso_objective(target, z, sae.atoms, 0.2)

    previous = level(sae.encode(x).detach())
    for steps in (1, 2, 5, 20, 300):
        now = level(infer(sae, x, "refine", l1=0.2, steps=steps))
        assert (now <= previous + 1e-5).all()
        previous = now
    best = level(infer(sae, x, "lasso", l1=0.2))
    assert torch.allclose(previous, best, rtol=1e-3)
    z = infer(sae, x, "lasso", l1=0.2)
    slope = 0.2 - 2 * (target - z @ sae.atoms) @ sae.atoms.T  # zero where active, at least zero elsewhere
    assert slope.min() > -5e-3
    assert slope[z > 0].abs().max() < 5e-3


def test_inference_keeps_shapes_transforms_and_numbers():
    sae = TopKDictionary(16, 40, k=5, seed=3)
    x = 3 + torch.randn(4, 5, 16, generator=_generator(8))
    sae.transform = type(sae.transform).fit(x.flatten(0, 1), "centre_sqrt_d")
    for method, options in (("omp", {"k": 3}), ("gradient_pursuit", {"k": 3}), ("lasso", {"k": 3}), ("encoder", {})):
        z = infer(sae, x, method, **options)
        assert z.shape == (4, 5, 40)
        assert ((z > 0).sum(-1) <= (3 if options else 5)).all()
    assert (x - sae.decode(infer(sae, x, "omp", k=8), like=x)).square().mean() < (x - sae(x)).square().mean()
    for method, options, message in (
        ("best", {}, "method='best' is unknown"),
        ("omp", {}, "'omp' needs k"),
        ("lasso", {}, "needs a penalty l1 or a number k"),
        ("refine", {}, "needs a penalty l1"),
    ):
        with pytest.raises(ValueError, match=message):
            infer(sae, x, method, **options)


# ---- baselines -------------------------------------------------------------------------------------------------------


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
