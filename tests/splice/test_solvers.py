"""The default solver: certificates on hard dictionaries, its two modes, its caches, and what it recovers."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_solvers import check, problem, unit
from vlsae.splice import prepared
from vlsae.splice.prepared import prepare
from vlsae.splice.solve import duality_gap, objective, solve
from vlsae.splice.solvers import active_set, spams_lasso

N, K, D = 40, 3000, 128


def in_use(C) -> prepared.PreparedDictionary:
    """As if it had been given so many samples before that its Gram matrix is worth making."""
    dictionary = prepared.PreparedDictionary(C)
    dictionary.seen = 10**6
    return dictionary


@pytest.fixture(scope="module")
def correlated():
    Z, C = problem(K=K, d=D, n=N, seed=3)
    return Z, in_use(C)


def same(a, b) -> bool:
    return np.array_equal(a.dense(), b.dense()) and np.array_equal(a.gap, b.gap)


@pytest.mark.parametrize("l1", [0.5, 0.25, 0.1, 0.03])
def test_certified_on_near_synonyms(correlated, l1):
    Z, C = correlated
    found = solve(Z, C, l1)
    check(found, Z, C.C, l1)
    assert found.l0.mean() > {0.5: 1, 0.25: 5, 0.1: 15, 0.03: 40}[l1]  # the problem is not an empty one


def test_without_a_gram_matrix(correlated, monkeypatch):
    """Both modes are certified to 1e-6, so their reconstructions are within 2 sqrt(1e-6) of each other."""
    Z, C = correlated
    for l1 in (0.25, 0.05):
        with_gram = solve(Z, C, l1)
        with monkeypatch.context() as patch:
            patch.setattr(active_set, "GRAM_LIMIT", K - 1)
            patch.setattr(active_set, "make_gram_rows", None)
            without = solve(Z, C, l1)
            assert same(without, solve(Z, C, l1, threads=2))
        check(without, Z, C.C, l1)
        apart = (with_gram.to_scipy() - without.to_scipy()) @ C.C
        assert np.linalg.norm(apart, axis=1).max() <= 2e-3
        values = [objective(Z, C, f.to_scipy(), l1) for f in (with_gram, without)]
        np.testing.assert_allclose(*values, atol=1e-6, rtol=0)


def test_results_do_not_depend_on_threads_or_on_what_was_solved_before():
    """Bit for bit: matrix products are cut the same way for any number of threads, and a sample that had to wait for
    rows of the Gram matrix starts anew when they are there."""
    Z, C = problem(K=2500, d=64, n=N, seed=4)
    for l1 in (0.3, 0.05, 0.01):
        dictionary = in_use(C)
        cold = solve(Z, dictionary, l1, threads=2)
        assert same(cold, solve(Z, dictionary, l1, threads=2))
        assert same(cold, solve(Z, dictionary, l1, threads=1))
        assert same(cold, solve(Z, in_use(C), l1, threads=1))
        assert same(cold, solve(Z, dictionary, l1, threads=1, max_iterations=5))  # of other methods


def test_working_sets_outgrow_their_first_capacity(correlated):
    """Samples in the cone of hundreds of concepts with a penalty that leaves most of them in."""
    rng = np.random.default_rng(5)
    C = unit(rng.standard_normal((400, 256))).astype(np.float32)
    Z = unit(rng.exponential(1, (N, 400)) @ C).astype(np.float32)
    dictionary = in_use(C)
    found = solve(Z, dictionary, 0.005)
    check(found, Z, C, 0.005)
    assert found.l0.min() > 2 * active_set.CAPACITY
    alone = solve(Z[:2], dictionary, 0.005)  # other matrix products, other roundings, other ways to the same solution
    np.testing.assert_allclose(alone.dense() @ C, found.dense()[:2] @ C, atol=2e-3)  # 2 sqrt(gap)


@pytest.mark.parametrize(
    "K, d, l1", [(400, 17, 1e-3), (400, 8, 1e-3), (300, 3, 1e-2), (120, 32, 1e-3), (400, 64, 5e-3), (400, 128, 2e-3)]
)
@pytest.mark.parametrize("kind", ["random", "non-negative", "twice", "nearly twice", "opposite"])
def test_more_candidates_than_dimensions(kind, K, d, l1):
    """Low penalties bring dependent columns into the working set: single precision once made NaN of them, or gave up."""
    rng = np.random.default_rng(6)
    C = rng.standard_normal((K, d))
    if kind == "non-negative":
        C = np.abs(C)
    if kind in ("twice", "nearly twice"):
        C = C[rng.integers(0, K // 3, K)] + (1e-5 * rng.standard_normal((K, d)) if kind == "nearly twice" else 0)
    if kind == "opposite":
        C[: K // 2] = -C[K // 2 :]
    C, Z = unit(C).astype(np.float32), unit(np.abs(rng.standard_normal((N, d)))).astype(np.float32)
    # Weights of single precision: an error e = 6e-8 S of correlations, S = sum w |C| <= 4, is 2 e S <= 2e-6 of the gap.
    for dictionary in (C, in_use(C)):
        found = solve(Z, dictionary, l1)
        check(found, Z, C, l1, tol=3e-6)
        if "twice" not in kind:
            assert (found.l0 <= d + 1).all()  # more are never independent; equal concepts may share a weight


def test_pairs_that_single_precision_cannot_tell_apart():
    """Pairs of cosine .9999 and more; the objective is that of an independent solver."""
    rng = np.random.default_rng(7)
    C = unit(rng.standard_normal((300, 64)))
    C = unit(np.concatenate([C, C + 10.0 ** rng.uniform(-6, -2.5, (300, 1)) * unit(rng.standard_normal((300, 64)))]))
    assert (np.einsum("kd,kd->k", C[:300], C[300:]) > 0.9999).all()
    C = C.astype(np.float32)
    Z = unit(np.stack([rng.exponential(1, 8) @ C[rng.integers(0, 600, 8)] for _ in range(N)])).astype(np.float32)
    for l1 in (0.2, 0.02):
        found, other = solve(Z, in_use(C), l1), solve(Z, C, l1, method="active_set_torch")
        check(found, Z, C, l1)
        values = [objective(Z, C, f.to_scipy(), l1) for f in (found, other)]
        np.testing.assert_allclose(*values, atol=1e-6, rtol=0)  # both are within their gaps of the optimum


def test_a_change_within_the_dictionary_is_noticed():
    """Of one number, of a sign everywhere, of a factor, of two rows that change places."""
    Z, C = problem(K=64, d=32, n=4)
    for change in (
        lambda c: c.__setitem__((5, 3), np.nextafter(c[5, 3], np.float32(9))),
        lambda c: np.negative(c, out=c),
        lambda c: np.multiply(c, 2, out=c),
        lambda c: np.negative(c[:2, 0], out=c[:2, 0]),
        lambda c: c.__setitem__([3, 4], c[[4, 3]]),
        lambda c: c.__setitem__([0, 63], c[[63, 0]]),
        lambda c: np.copyto(c, c[:, ::-1].copy()),
    ):
        before = prepare(C)
        assert prepare(C) is before
        change(C)
        assert prepare(C) is not before
        assert np.array_equal(solve(Z, C, 0.1).dense(), solve(Z, C.copy(), 0.1).dense())


def test_what_was_prepared_is_a_copy():
    Z, C = problem(K=64, d=32, n=4)
    dictionary, expected = prepare(C), solve(Z, C.copy(), 0.1).dense()
    C[:] = 0
    assert np.array_equal(solve(Z, dictionary, 0.1).dense(), expected)


def test_a_dictionary_that_is_gone_is_forgotten():
    _, C = problem(K=64, d=32, n=4)
    kept = weakref.ref(prepare(C))
    assert kept() is prepare(C)
    del C
    gc.collect()
    assert kept() is None and prepared._last is None


def test_planted_supports_are_recovered():
    """Six of 1,000 random directions in 256 dimensions: the largest cosines are about .3, and all 50 come out."""
    rng = np.random.default_rng(8)
    C = unit(rng.standard_normal((1000, 256))).astype(np.float32)
    true = np.sort(np.stack([rng.choice(1000, 6, replace=False) for _ in range(50)]), axis=1)
    found = solve(unit(C[true].sum(1)), C, l1=0.1).to_scipy()
    assert (np.diff(found.indptr) == 6).all()
    assert np.array_equal(found.indices.reshape(50, 6), true)


def test_near_synonyms_are_confused_unless_they_are_pruned():
    """Each planted concept gets a twin. The twin's correlation is `c l1 / 2` plus a random part of `.15 sqrt(1 - c^2)
    l1 / 2`, which passes `l1 / 2` once `c` is near 1: why concepts of cosine above .9 are pruned."""
    rng = np.random.default_rng(9)
    C = unit(rng.standard_normal((500, 256)))
    true = np.sort(np.stack([rng.choice(500, 6, replace=False) for _ in range(50)]), axis=1)
    other = rng.standard_normal(C.shape)
    other = unit(other - (other * C).sum(1, keepdims=True) * C)
    exact = {}
    for cosine in (0.5, 0.8, 0.95, 0.99):
        both = np.concatenate([C, cosine * C + np.sqrt(1 - cosine**2) * other]).astype(np.float32)
        found = solve(unit(C[true].sum(1)), both, l1=0.1).dense() > 0
        wanted = np.zeros_like(found)
        np.put_along_axis(wanted, true, True, axis=1)
        exact[cosine] = int((found == wanted).all(1).sum())
    assert exact[0.5] == 50 and exact[0.8] >= 35, exact  # measured: 50, 42, 22 and 4, each uncertain
    assert exact[0.95] <= 30 and exact[0.99] <= 15, exact  # by up to 3.5, the deviation of 50 coin tosses


def test_the_residual_grows_with_the_penalty(correlated):
    """A theorem: adding the optimality of two penalties, (l1 - l1') (sum w - sum w') <= 0, and the residual the other way.
    What the gap leaves open is ||wC - w*C|| <= 1e-3."""
    Z, C = correlated
    grid = [solve(Z, C, l1).to_scipy() for l1 in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)]
    residuals = np.array([np.linalg.norm(Z - w @ C.C, axis=1) for w in grid])
    assert (np.diff(residuals, axis=0) >= -2e-3).all()
    assert (residuals[-1] - residuals[0] > 0.2).all()


def test_rounds_that_do_not_suffice_leave_an_honest_gap(correlated, monkeypatch):
    Z, C = correlated
    monkeypatch.setattr(active_set, "MAX_ROUNDS", 2)
    found = solve(Z, C, 0.05)
    assert found.gap.max() > 1e-4  # two rounds do not make it
    np.testing.assert_allclose(found.gap, duality_gap(Z, C, found.to_scipy(), 0.05), atol=1e-10)


def test_a_tolerance_of_zero_ends(correlated):
    """Nothing has a gap of exactly 0; weights stop where single precision does."""
    Z, C = correlated
    assert solve(Z[:4], C, 0.1, tol=0.0).gap.max() < 1e-6


def test_spams_does_not_end_the_process():
    assert (
        spams_lasso.spams_lasso(np.ones((2, 3)), prepare(np.zeros((4, 3))), np.ones(2), tol=1e-6, threads=1)[0].nnz == 0
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    K=st.integers(1, 40), d=st.integers(1, 20), seed=st.integers(0, 2**31), share=st.floats(0.02, 1.3),
    scales=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), kind=st.sampled_from(["random", "twice", "integers", "sparse"]),
)  # fmt: skip
def test_nothing_is_better_than_the_certificate_says(K, d, seed, share, scales, kind):
    """Against coordinate descent, which shares no step with it, and against random weights."""
    rng = np.random.default_rng(seed)
    C, Z = rng.standard_normal((K, d)), rng.standard_normal((3, d))
    if kind == "twice":
        C = C[rng.integers(0, (K + 1) // 2, K)]
    if kind == "integers":
        C, Z = np.rint(2 * C), np.rint(2 * Z)
    if kind == "sparse":
        C *= rng.random(C.shape) < 0.3
    C, Z = (C * 10.0 ** scales[0]).astype(np.float32), (Z * 10.0 ** scales[1]).astype(np.float32)
    lengths = np.linalg.norm(Z, axis=1) * np.linalg.norm(C, axis=1).max()
    l1 = np.maximum(2 * share * np.maximum((Z @ C.T).max(1), 0), 0.02 * lengths) + 1e-12
    found, other = solve(Z, in_use(C), l1), solve(Z, C, l1, method="coordinate_descent")
    check(found, Z, C, l1)
    zz = np.maximum((Z.astype(float) ** 2).sum(1), 1e-30)
    value, best = objective(Z, C, found.to_scipy(), l1) / zz, objective(Z, C, other.to_scipy(), l1) / zz
    assert (best >= value - found.gap / zz - 1e-12).all()  # sums in another order
    assert (value >= best - other.gap / zz - 1e-12).all()
