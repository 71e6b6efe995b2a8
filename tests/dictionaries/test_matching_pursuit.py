"""Pursuits: their identities, hierarchies no one-shot encoder resolves, other implementations, and training."""

import numpy as np
import pytest
import spams
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from vlsae.dictionaries.least_squares import nonnegative_codes
from vlsae.dictionaries.matching_pursuit import MatchingPursuitDictionary
from vlsae.dictionaries.pursuit import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit
from vlsae.metrics.coherence import coherence
from vlsae.metrics.matching import stability
from vlsae.training import train


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _atoms(n, d, seed=0):
    return F.normalize(torch.randn(n, d, generator=_generator(seed), dtype=torch.float64), dim=1)


def _spams(x, D, k):
    """Orthogonal matching pursuit by spams."""
    found = spams.omp(np.asfortranarray(x.T.numpy()), np.asfortranarray(D.T.numpy()), L=k, numThreads=1)
    return torch.from_numpy(found.toarray().T.copy())


X = torch.randn(200, 16, generator=_generator(9), dtype=torch.float64)


@pytest.mark.parametrize("by_gram", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_energy_monotony_and_orthogonality(nonnegative, by_gram):
    """Card 41, test 1: the squared norm splits into the squared steps and the rest, to 1e-10."""
    D, before, previous = _atoms(40, 16), X, torch.zeros(200, 40, dtype=torch.float64)
    energy = torch.zeros(200, dtype=torch.float64)
    for k in range(1, 9):
        z = matching_pursuit(X, D, k, nonnegative, by_gram=by_gram)
        rest, change = X - z @ D, z - previous
        energy += change.square().sum(1)
        assert torch.allclose(energy + rest.square().sum(1), X.square().sum(1), atol=1e-10)
        assert (rest.norm(dim=1) <= before.norm(dim=1) + 1e-12).all()
        moved = change.abs().sum(1) > 0
        last = D[change.abs().argmax(1)]
        assert ((rest * last).sum(1)[moved].abs() < 1e-10).all()
        before, previous = rest, z


def test_an_orthonormal_dictionary_gives_topk_of_positive_projections():
    """Card 41, test 2."""
    Q = torch.linalg.qr(torch.randn(16, 16, generator=_generator(1), dtype=torch.float64))[0]
    values, order = (X @ Q.T).topk(4, dim=1)
    expected = torch.zeros(200, 16, dtype=torch.float64).scatter(1, order, values.clamp_min(0))
    assert torch.allclose(matching_pursuit(X, Q, 4), expected, atol=1e-12)
    assert torch.allclose(orthogonal_matching_pursuit(X, Q, 4), expected, atol=1e-6)


@pytest.mark.parametrize(("rho", "one_shot"), [(0.0, 0.98), (0.5, 1.0), (0.7, 0.95), (0.9, 0.6)])
def test_two_levels_are_exact_at_any_correlation_within_a_level(rho, one_shot):
    """Card 41, test 3: parents and children in orthogonal spaces, correlation `rho` within each.

    Two steps give the codes exactly; the two largest of `D x` are two of one level once `rho` is large.
    """

    def level(n, offset):
        mix = (1 - rho) * torch.eye(n, dtype=torch.float64) + rho
        part = torch.linalg.cholesky(mix)
        return F.pad(part, (offset, 16 - n - offset))

    D = torch.cat([level(8, 0), level(8, 8)])
    generator = _generator(2)
    parent, child = (torch.randint(0, 8, (500,), generator=generator) for _ in range(2))
    z = torch.zeros(500, 16, dtype=torch.float64)
    z[torch.arange(500), parent] = 1.5 + 0.25 * torch.randn(500, generator=generator, dtype=torch.float64)
    z[torch.arange(500), 8 + child] = 1.5 + 0.25 * torch.randn(500, generator=generator, dtype=torch.float64)
    x = z @ D
    assert torch.allclose(matching_pursuit(x, D, 2), z, atol=1e-10)
    flat = (x @ D.T).topk(2, dim=1).indices.sort(dim=1).values
    right = (flat == torch.stack([parent, 8 + child], 1)).all(1).double().mean().item()
    assert right <= one_shot + 0.02
    if rho == 0.9:
        assert right < 0.6


def test_support_is_exact_below_the_coherence_bound():
    """Card 41, test 4: Dirac and Hadamard in R^64: coherence 1/8 < 1 / (2 k - 1) at k = 4, codes of any sign."""
    D = torch.cat([torch.eye(64, dtype=torch.float64), torch.from_numpy(hadamard(64) / 8.0)])
    assert coherence(D) == pytest.approx(1 / 8)
    generator = _generator(3)
    support = torch.rand(500, 128, generator=generator).argsort(1) < 4
    z = support * torch.randn(500, 128, generator=generator, dtype=torch.float64)
    found = matching_pursuit(z @ D, D, 30, nonnegative=False)
    assert ((found.abs() > 1e-9) <= support).all()
    assert torch.allclose(orthogonal_matching_pursuit(z @ D, D, 4, nonnegative=False), z, atol=1e-8)
    assert torch.allclose(_spams(z @ D, D, 4), z, atol=1e-8)


def test_positive_pursuit_is_safe_in_its_first_step_only():
    """Card 41, test 4: with positive codes the first choice is right, but leftovers are negative and lead elsewhere.

    Of 500 the supports of 30 steps are right for about a fifth, where pursuit of either sign has all.
    """
    D = torch.cat([torch.eye(64, dtype=torch.float64), torch.from_numpy(hadamard(64) / 8.0)])
    generator = _generator(3)
    support = torch.rand(500, 128, generator=generator).argsort(1) < 4
    z = support * (0.5 + torch.rand(500, 128, generator=generator, dtype=torch.float64))
    first, later = (matching_pursuit(z @ D, D, k) > 1e-9 for k in (1, 30))
    assert (first <= support).all()
    assert (later <= support).all(1).double().mean() < 0.4
    assert ((matching_pursuit(z @ D, D, 30, nonnegative=False).abs() > 1e-9) <= support).all()


@pytest.mark.parametrize("length", [0.7, 1.5])
def test_atoms_must_be_of_unit_norm(length):
    """A step of an atom of norm `a` changes the squared norm of the rest by `-(2 - a^2) c^2`: it grows beyond 1.41."""
    with pytest.raises(ValueError, match=f"norms between {length} and {length}; matching pursuit needs 1"):
        matching_pursuit(X, length * _atoms(40, 16), 3)


def test_orthogonal_pursuit_is_that_of_scikit_learn_and_spams_and_the_fits_are_scipys():
    """Card 41, test 5. spams chooses by what is left after the fit, so its supports are often others.

    Where it chooses the same (as it must below the coherence bound, see above), the codes are.
    """
    D = _atoms(40, 16, 4)
    z = orthogonal_matching_pursuit(X, D, 5, nonnegative=False)
    assert np.allclose(orthogonal_mp(D.T.numpy(), X.T.numpy(), n_nonzero_coefs=5).T, z.numpy(), atol=1e-8)
    theirs = _spams(X, D, 5)
    alike = ((theirs != 0) == (z != 0)).all(1)
    assert alike.sum() > 60
    assert torch.allclose(theirs[alike], z[alike], atol=1e-8)
    positive = orthogonal_matching_pursuit(X, D, 5)
    assert (positive >= 0).all()
    assert ((positive > 0).sum(1) <= 5).all()
    for x, code in zip(X, positive, strict=True):
        on = code > 0
        assert np.allclose(nnls(D[on].T.numpy(), x.numpy())[0], code[on].numpy(), atol=1e-6)


def test_nonnegative_least_squares_is_scipys():
    D = _atoms(12, 16, 5)
    codes = nonnegative_codes(X @ D.T, D @ D.T)
    for x, code in zip(X, codes, strict=True):
        assert np.allclose(nnls(D.T.numpy(), x.numpy())[0], code.numpy(), atol=1e-5)


def test_nonnegative_codes_of_a_vector_do_not_depend_on_the_others():
    """One matrix for all or one each, from any start, in any precision: a row is what it is alone."""
    D, generator = _atoms(12, 16, 5), _generator(6)
    target, gram = X @ D.T, D @ D.T
    together = nonnegative_codes(target, gram)
    alone = torch.cat([nonnegative_codes(row[None], gram) for row in target[:20]])
    assert torch.equal(together[:20], alone)
    assert torch.equal(nonnegative_codes(target, gram.expand(len(X), 12, 12)), together)
    elsewhere = torch.rand(len(X), 12, generator=generator, dtype=torch.float64)
    assert torch.allclose(nonnegative_codes(target, gram, elsewhere), together, atol=1e-5)
    assert torch.allclose(nonnegative_codes(target.float(), gram.float()), together.float(), atol=1e-5)
    assert nonnegative_codes(target.bfloat16(), gram.bfloat16()).dtype == torch.bfloat16
    assert nonnegative_codes(target[:0], gram).shape == (0, 12)


def test_gradient_pursuit_lies_between_matching_and_orthogonal_pursuit():
    """Each step's line search lowers the error; the full fit is the least possible for a support."""
    D = _atoms(64, 16, 6)

    def error(z):
        return (X - z @ D).square().sum(1).mean().item()

    greedy = [error(gradient_pursuit(X, D, k)) for k in (1, 2, 4, 8)]
    assert greedy == sorted(greedy, reverse=True)
    assert error(orthogonal_matching_pursuit(X, D, 6)) < error(gradient_pursuit(X, D, 6)) + 1e-9
    assert error(gradient_pursuit(X, D, 6)) < 1.05 * error(matching_pursuit(X, D, 6))


def test_steps_can_be_changed_afterwards_and_stop_at_a_tolerance():
    sae = MatchingPursuitDictionary(16, 40, k=3, tol=1.0, seed=1)
    x = X.float()
    for k in (1, 5):
        assert ((sae.encode_at(x, k) != 0).sum(1) <= k).all()
    assert torch.equal(sae.encode_at(x, 3), sae.encode(x))
    small = 0.1 * F.normalize(x, dim=1)
    assert (sae.encode(small) == 0).all()
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        sae.encode_at(x, 0)


@pytest.mark.parametrize("by_gram", [True, False])
@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("tol, at_least", [(0.0, 0), (1.5, 0), (1.5, 1)])
def test_stops_are_those_of_a_loop_over_single_vectors(by_gram, repeats, tol, at_least):
    """At most k steps; the last is one that takes an atom again, or one after which the rest is within tol."""
    atoms, x = _atoms(20, 16), torch.cat([X[:20], 0.2 * X[20:30]])
    z = matching_pursuit(x, atoms, 12, True, tol, by_gram, repeats, at_least)
    lengths = set()
    for vector, codes in zip(x, z):
        rest, expected, taken = vector.clone(), torch.zeros(20, dtype=torch.float64), []
        while len(taken) < 12 and (len(taken) < at_least or not tol or rest.norm() > tol):
            j = int((atoms @ rest).argmax())
            c = (atoms[j] @ rest).clamp_min(0)
            expected[j] += c
            rest -= c * atoms[j]
            taken.append(j)
            if not repeats and len(set(taken)) < len(taken):
                break
        lengths.add(len(taken))
        assert (codes - expected).abs().max() < 1e-12
    assert len(lengths) > 1 or (repeats and not tol)  # stops do happen


def test_at_least_is_for_plain_pursuit():
    with pytest.raises(ValueError, match="at_least"):
        MatchingPursuitDictionary(4, 8, k=2, orthogonal=True, at_least=1)


def test_gradients_of_unrolled_steps_are_those_of_finite_differences():
    D = _atoms(9, 4, 7).requires_grad_()
    x = X[:3, :4]
    assert torch.autograd.gradcheck(lambda a: matching_pursuit(x, a, 3, by_gram=False), (D,), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda a: orthogonal_matching_pursuit(x, a, 2), (D,), eps=1e-7, atol=1e-4)


def test_training_keeps_a_hierarchy_apart_where_relu_mixes_it():
    """Card 41, test 6: the Gram matrix across levels (true: 0) is nearer to the truth than a ReLU dictionary's."""
    generator = _generator(8)
    Q = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    level = [Q[:8], Q[8:16]]
    D = torch.cat([F.normalize(0.65 * part + 0.35 * part.mean(0) * 2, dim=1) for part in level])
    parent, child = (torch.randint(0, 8, (8000,), generator=generator) for _ in range(2))
    z = torch.zeros(8000, 16)
    z[torch.arange(8000), parent] = 1.5 + 0.25 * torch.randn(8000, generator=generator)
    some = torch.rand(8000, generator=generator) < 0.6
    z[torch.arange(8000)[some], 8 + child[some]] = 1.5
    x = z @ D
    options = {"n_latents": 16, "steps": 800, "batch_size": 256, "lr": 3e-3, "b_dec_init": "zeros", "progress": False}
    across, cosine = {}, {}
    for family, own in (("matching_pursuit", {"k": 2}), ("relu", {"target_l0": 1.6})):
        sae = train(x, family, dead_policy="none", **options, **own)
        match = stability(D, sae.atoms)
        atoms = F.normalize(sae.atoms[match.partners], dim=1)
        across[family] = ((atoms @ atoms.T)[:8, 8:] - (D @ D.T)[:8, 8:]).square().mean().item()
        cosine[family] = match.mean
    assert across["matching_pursuit"] < 0.5 * across["relu"]
    assert cosine["matching_pursuit"] > cosine["relu"]
