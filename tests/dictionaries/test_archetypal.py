"""Archetypal dictionaries: atoms inside the hull of the data, by the propositions of the paper."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls

from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.archetypal import ArchetypalDictionary
from vlsae.metrics.geometry import out_of_data
from vlsae.metrics.matching import stability
from vlsae.training import train

RECIPE = {"steps": 600, "batch_size": 256, "lr": 3e-3, "progress": False, "k": 2, "n_latents": 24, "candidates": 64}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _hull_distance(point, candidates):
    """The distance of a point from the hull: non-negative least squares with a heavy row that adds weights up to 1."""
    heavy = 1e4
    A = np.vstack([candidates.T, heavy * np.ones(len(candidates))])
    weights, _ = nnls(A, np.append(point, heavy), maxiter=20 * len(candidates))
    return float(np.linalg.norm(weights @ candidates - point))


def _data():
    """Non-negative 2-sparse mixtures of 12 directions: the single ones are its extreme points."""
    atoms = F.normalize(torch.randn(12, 16, generator=_generator(1)), dim=1)
    single = torch.randint(0, 12, (3000,), generator=_generator(2))
    pairs = torch.rand(3000, 12, generator=_generator(3)).argsort(1) < 2
    x = torch.cat([atoms[single], 0.5 * pairs.float() @ atoms])
    return atoms, x


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_atoms_stay_within_delta_of_the_hull(delta):
    """Proposition F.1: exactly in the hull without relaxation, at most `delta` from it with one."""
    _, x = _data()
    sae = train(x, "archetypal", delta=delta, **{**RECIPE, "steps": 60})
    assert torch.allclose(sae.mixture.sum(1), torch.ones(24), atol=1e-5)
    assert (sae.mixture >= 0).all()
    points = (sae.atoms / sae.log_scale.exp()).double().numpy()
    distances = [_hull_distance(point, sae.candidates.double().numpy()) for point in points]
    assert max(distances) <= delta + 1e-4
    if delta:
        assert max(distances) > 0.01


def test_constraining_twice_changes_nothing_more():
    sae = ArchetypalDictionary(8, 10, k=2, candidates=6, delta=0.5)
    with torch.no_grad():
        sae.mixture.normal_(generator=_generator(1))
        sae.relaxation.normal_(generator=_generator(2))
    sae.constrain()
    mixture, relaxation = sae.mixture.clone(), sae.relaxation.clone()
    assert relaxation.norm(dim=1).max() <= 0.5 + 1e-6
    sae.constrain()
    assert torch.allclose(sae.mixture, mixture, atol=1e-6)
    assert torch.allclose(sae.relaxation, relaxation, atol=1e-6)


def test_gradients_reach_mixture_and_relaxation():
    sae = ArchetypalDictionary(8, 10, k=2, candidates=6)
    x = torch.randn(20, 8, generator=_generator())
    (sae.trace(x).xhat - x).square().sum().backward()
    assert sae.mixture.grad.abs().sum() > 0
    assert sae.relaxation.grad.abs().sum() > 0
    assert not sae.candidates.requires_grad


def test_mixtures_follow_the_data_lipschitz():
    """Propositions F.2 and F.3: `||W A - W' A'|| <= sqrt(m) eps + 2 sqrt(m) min(||A||, ||A'||)`; rank at most A's, W's."""
    A = torch.randn(9, 8, generator=_generator(1), dtype=torch.float64)
    other = A + 0.01 * torch.randn(9, 8, generator=_generator(2), dtype=torch.float64)
    W, V = (torch.rand(5, 9, generator=_generator(s), dtype=torch.float64).softmax(1) for s in (3, 4))
    eps = (A - other).norm()
    assert (W @ A - V @ other).norm() <= 5**0.5 * eps + 2 * 5**0.5 * torch.minimum(A.norm(), other.norm())
    assert (W @ A - W @ other).norm() <= 5**0.5 * eps
    low = A[:, :3] @ torch.randn(3, 8, generator=_generator(5), dtype=torch.float64)
    assert torch.linalg.matrix_rank(W @ low) <= 3


def test_distance_from_orthonormal_data_is_read_from_the_mixture():
    """Proposition F.4: over orthonormal points, `OOD(D_i) = 1 - max_j W_ij / ||W_i|| <= 1 - max_j W_ij`; 0 if one-hot."""
    points = torch.linalg.qr(torch.randn(8, 8, generator=_generator(1)))[0][:6]
    sae = ArchetypalDictionary(8, 10, k=2, candidates=6, delta=0.0)
    with torch.no_grad():
        sae.candidates.copy_(points)
        sae.relaxation.zero_()
        sae.log_scale.fill_(0.7)  # lengths do not matter
        sae.mixture.copy_(torch.rand(10, 6, generator=_generator(2)).square())
        sae.constrain()
    top, norms = sae.mixture.max(1).values, sae.mixture.norm(dim=1)
    for i, atom in enumerate(sae.atoms):
        assert out_of_data(atom[None], points) == pytest.approx(1 - (top[i] / norms[i]).item(), abs=1e-6)
        assert out_of_data(atom[None], points) <= 1 - top[i].item() + 1e-6
    with torch.no_grad():
        sae.mixture.copy_(F.one_hot(torch.arange(10) % 6, 6))
    assert out_of_data(sae.atoms, points) == pytest.approx(0, abs=1e-6)


def test_extreme_points_of_the_data_are_found():
    """Planted atoms that are points of the data come back with a matched cosine above .95."""
    atoms, x = _data()
    sae = train(x, "archetypal", delta=0.0, **RECIPE)
    assert stability(atoms, sae.atoms).mean > 0.95


def test_atoms_outside_the_cone_cannot_be_reached_without_relaxation():
    """Data that never show one atom alone: the error without relaxation has a floor, and falls as `delta` grows."""
    # two latents more than atoms: with four, training stops in local optima whatever delta is
    atoms = F.normalize(torch.randn(4, 16, generator=_generator(6)), dim=1)
    on = torch.rand(4000, 4, generator=_generator(7)).argsort(1) < 2
    x = (on * (0.9 + 0.2 * torch.rand(4000, 4, generator=_generator(8)))) @ atoms
    errors = []
    for delta in (0.0, 0.2, 0.5, 1.0):
        own = {"n_latents": 6, "candidates": 32, "steps": 1500, "dead_after_tokens": 5000}
        sae = train(x, "archetypal", delta=delta, **{**RECIPE, **own})
        errors.append((x - sae(x)).square().sum(1).mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.1 * errors[0]


def test_no_reconstruction_is_nearer_than_the_cone_of_the_candidates():
    """Without relaxation: for every vector, by exact non-negative least squares. A relaxed one gets below that."""
    _, x = _data()
    own = {**RECIPE, "candidates": 8, "steps": 200, "dead_policy": "none"}
    strict, relaxed = (train(x, "archetypal", delta=delta, **own) for delta in (0.0, 1.0))
    assert (strict.b_dec == 0).all()
    points = strict.candidates.double().numpy().T
    floor = torch.tensor([nnls(points, vector)[1] ** 2 for vector in x.double().numpy()])
    errors = [(x - sae(x)).double().square().sum(1) for sae in (strict, relaxed)]
    assert floor.mean() > 0.1
    assert (errors[0] >= floor - 1e-5).all()
    assert errors[1].mean() < floor.mean()


def test_everything_it_needs_is_saved(tmp_path):
    _, x = _data()
    sae = train(x, "archetypal", delta=0.1, **{**RECIPE, "steps": 5})
    other = load_dictionary(sae.save(tmp_path))
    assert torch.equal(other.candidates, sae.candidates)
    assert torch.equal(other(x[:50]), sae(x[:50]))


def test_seeds_draw_candidates_and_mixtures_anew():
    """Equal starts would make runs alike whatever the constraint does; see "Ablating Archetypes"."""
    x = torch.randn(500, 8, generator=_generator())
    first, second = (ArchetypalDictionary(8, 10, k=2, candidates=20, seed=seed) for seed in (0, 1))
    first.prepare(x)
    second.prepare(x)
    assert not torch.equal(first.candidates, second.candidates)
    assert (first.mixture.argmax(1) != second.mixture.argmax(1)).any()
    assert stability(first.atoms, second.atoms).mean < 0.95


@pytest.mark.parametrize(
    ("options", "message"), [({"k": 11}, "k=11 must lie"), ({"k": 1, "delta": -1}, "delta=-1 at least 0")]
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ArchetypalDictionary(8, 10, **options)
