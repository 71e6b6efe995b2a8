"""What every registered solver of the sparse non-negative decomposition must do."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from vlsae.splice.solve import duality_gap, objective, solve
from vlsae.splice.solvers import SOLVERS, active_set

N, K, D = 8, 600, 64
ROUNDING = 1e-6  # of a cosine: weights of single precision, 6e-8 relative, times a sum of weights below 10


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def problem(K=K, d=D, n=N, seed=0, spread=0.35):
    """Concepts in clusters of near-synonyms, cosine about .9; samples are mixtures of few of them and noise."""
    rng = np.random.default_rng(seed)
    C = unit(rng.standard_normal((max(1, K // 6), d)))[rng.integers(0, max(1, K // 6), K)]
    C = unit(C + spread * rng.standard_normal((K, d)) / np.sqrt(d))
    Z = np.stack([rng.exponential(1, 5) @ C[rng.integers(0, K, 5)] for _ in range(n)])
    return unit(unit(Z) + 0.5 * unit(rng.standard_normal((n, d)))).astype(np.float32), C.astype(np.float32)


@pytest.fixture(params=[*SOLVERS, "active_set, much used"])
def method(request, monkeypatch):
    """Names of solvers; the default one twice, as it works otherwise once a dictionary has seen many samples."""
    if request.param == "active_set, much used":
        monkeypatch.setattr(active_set, "FEW", 0)
        return "active_set"
    return request.param


def check(found, Z, C, l1, tol=1e-6):
    """Form, certificate and optimality conditions of a solution, whatever found it."""
    Z, C, w = np.asarray(Z, dtype=np.float64), np.asarray(C, dtype=np.float64), found.to_scipy()
    assert w.shape == (len(Z), len(C)) and w.dtype == np.float32 and w.format == "csr"
    assert (w.data > 0).all() and np.isfinite(w.data).all()
    assert all((np.diff(w.indices[a:b]) > 0).all() for a, b in zip(w.indptr, w.indptr[1:]))  # sorted, none twice
    zz = (Z**2).sum(1)
    # The same sums in another order: at most some 1e3 terms, each rounded to 1e-16.
    np.testing.assert_allclose(found.gap / np.maximum(zz, 1e-30), duality_gap(Z, C, w, l1) / np.maximum(zz, 1e-30),
                               atol=1e-10, rtol=0)  # fmt: skip
    assert (found.gap <= tol * zz).all()
    dense = w.toarray().astype(np.float64)
    gradient = 2 * (dense @ C - Z) @ C.T + np.broadcast_to(l1, len(Z))[:, None]
    # The objective is strongly convex in wC: ||wC - w*C||^2 <= gap, which moves a gradient by 2 |C_j| sqrt(gap); and
    # sum_j w_j gradient*_j <= gap.
    near = 2 * np.linalg.norm(C, axis=1) * (np.sqrt(found.gap) + ROUNDING * np.sqrt(zz))[:, None]
    assert (gradient >= -near).all()
    assert (
        np.abs(gradient) <= near + found.gap[:, None] / np.where(dense > 0, dense, np.inf) + 1e30 * (dense == 0)
    ).all()


@pytest.mark.parametrize("l1", [0.5, 0.25, 0.1])
def test_solutions_are_optimal_and_say_so(method, l1):
    Z, C = problem()
    found = solve(Z, C, l1, method=method)
    check(found, Z, C, l1)
    reference = Lasso(alpha=l1 / (2 * D), positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
    best = np.stack([reference.fit(C.T.astype(float), z.astype(float)).coef_ for z in Z])
    residual = Z.astype(float) - best @ C.astype(float)
    optimum = (residual**2).sum(1) + l1 * best.sum(1)
    value = objective(Z, C, found.to_scipy(), l1)
    np.testing.assert_allclose(value, optimum, rtol=1e-4)
    assert (value - optimum <= found.gap + 1e-9).all()  # what the certificate promises; sklearn is off by its tol


def test_orthonormal_concepts_have_a_closed_form(method):
    rng = np.random.default_rng(1)
    C = np.linalg.qr(rng.standard_normal((32, 32)))[0][:20].astype(np.float32)
    Z = unit(rng.standard_normal((6, 32))).astype(np.float32)
    found = solve(Z, C, 0.2, method=method)
    # ||w - w*||^2 = ||wC - w*C||^2 <= gap <= 1e-6, so no weight is off by more than 1e-3; exact solvers by rounding.
    exact = 5e-7 if method in ("active_set", "active_set_torch", "spams", "coordinate_descent") else 1e-3
    np.testing.assert_allclose(found.dense(), np.maximum(Z @ C.T - 0.1, 0), atol=exact, rtol=0)


def test_two_names_of_the_penalty_and_one_for_each_sample(method):
    Z, C = problem(K=60, d=24)
    a, b = solve(Z, C, l1=0.3, method=method), solve(Z, C, lam=0.15, method=method)
    assert (a.to_scipy() != b.to_scipy()).nnz == 0 and (a.l1 == 0.3).all() and (b.l1 == 0.3).all()
    many = np.linspace(0.05, 0.6, N)
    check(solve(Z, C, many, method=method), Z, C, many)
    check(solve(Z, C, lam=many / 2, method=method), Z, C, many)


def test_the_largest_penalty_that_leaves_a_concept(method):
    """`w = 0` exactly where `l1 >= 2 max_j C_j.z`. A thousandth below it one concept is left, unless another's
    correlation is as near to the largest, and none is here."""
    Z, C = problem(K=40, d=24, n=4)
    correlation = np.sort(Z.astype(float) @ C.T.astype(float), axis=1)
    assert (correlation[:, -2] < 0.998 * correlation[:, -1]).all()
    highest = 2 * correlation[:, -1]
    assert solve(Z, C, highest * (1 + 1e-6), method=method).to_scipy().nnz == 0
    below = solve(Z, C, highest * (1 - 1e-3), method=method, tol=1e-8)
    assert (below.l0 == 1).all()


ODD = {
    "duplicates": lambda rng, C: np.repeat(C[:8], 3, 0),
    "all the same": lambda rng, C: np.repeat(C[:1], 30, 0),
    "zero rows": lambda rng, C: C * (np.arange(len(C)) % 3 > 0)[:, None],
    "only zero rows": lambda rng, C: 0 * C,
    "a sum of two others": lambda rng, C: np.concatenate([C, (C[:1] + C[1:2]) / 2]),
    "opposite": lambda rng, C: np.concatenate([C, -C]),
    "non-negative": lambda rng, C: np.abs(C),
    "one concept": lambda rng, C: C[:1],
    "fewer than eight": lambda rng, C: C[:5],
    "fewer than dimensions": lambda rng, C: C[:10],
    "many more than dimensions": lambda rng, C: rng.standard_normal((200, C.shape[1])),
    "one dimension": lambda rng, C: C[:, :1],
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_dictionaries(method, odd):
    """Certificates stand where solutions are not unique, and where there is no solution but zero."""
    Z, C = problem(K=24, d=16, n=5)
    C = ODD[odd](np.random.default_rng(2), C).astype(np.float32)
    Z = Z[:, : C.shape[1]]
    wrong = method == "spams" and odd in ("duplicates", "all the same")  # LARS without a rule for ties; the gap tells
    check(solve(Z, C, 0.1, method=method), Z, C, 0.1, tol=1.0 if wrong else 1e-6)


def test_odd_samples(method):
    """No correlation above zero, no weight: the zero vector, one orthogonal to all concepts, and opposite ones."""
    _, C = problem(K=24, d=16)
    C[:, -1] = 0
    Z = np.stack([np.zeros(16), np.eye(16)[-1], *-C[:3]]).astype(np.float32)
    C = C[(Z[2:] @ C.T <= 0).all(0)]
    found = solve(Z, C, 1e-3, method=method)
    assert found.to_scipy().nnz == 0
    assert (found.gap <= 1e-12).all()


@pytest.mark.parametrize("n", [0, 1])
def test_no_and_one_sample(method, n):
    Z, C = problem(K=30, d=16)
    found = solve(Z[:n], C, 0.1, method=method)
    assert len(found) == n and found.gap.shape == found.l1.shape == (n,)
    check(found, Z[:n], C, 0.1)


@pytest.mark.parametrize("of_samples", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("of_concepts", [1e-3, 1e3])
def test_other_scales(method, of_samples, of_concepts):
    """`(a z, b C, a b l1)` has the weights `a / b` times as large and the gap `a^2` times."""
    Z, C = problem(K=24, d=16, n=4)
    l1 = 0.1 * of_samples * of_concepts
    Z, C = Z * np.float32(of_samples), C * np.float32(of_concepts)
    check(solve(Z, C, l1, method=method), Z, C, l1)


def test_other_kinds_of_numbers(method):
    """float16 holds these values exactly, so that every kind gives the same bits; int and bool are numbers too."""
    Z, C = (a.astype(np.float16).astype(np.float32) for a in problem(K=24, d=16, n=4))
    expected = solve(Z, C, 0.1, method=method).dense()
    fixed_z, fixed_c = Z.copy(), C.copy()
    fixed_z.flags.writeable = fixed_c.flags.writeable = False
    wide_z, wide_c = np.zeros((8, 32), np.float32), np.zeros((48, 32), np.float32)
    wide_z[::2, ::2], wide_c[::2, ::2] = Z, C
    for z, c in [
        (Z.astype(np.float64), C.astype(np.float64)), (Z.astype(np.float16), C.astype(np.float16)),
        (Z.tolist(), C.tolist()), (torch.from_numpy(Z), torch.from_numpy(C)),
        (torch.from_numpy(Z).half(), torch.from_numpy(C).double().requires_grad_()), (fixed_z, fixed_c),
        (wide_z[::2, ::2], wide_c[::2, ::2]), (np.asfortranarray(Z), np.asfortranarray(C)),
    ]:  # fmt: skip
        assert np.array_equal(solve(z, c, 0.1, method=method).dense(), expected)
    rough = solve(torch.from_numpy(Z).bfloat16(), torch.from_numpy(C).bfloat16(), 0.1, method=method)
    check(rough, torch.from_numpy(Z).bfloat16().float(), torch.from_numpy(C).bfloat16().float(), 0.1)
    check(solve(np.arange(16)[None], np.eye(16, dtype=bool), 0.5, method=method), np.arange(16)[None], np.eye(16), 0.5)


def test_refused(method):
    Z, C = problem(K=24, d=16, n=3)

    def bad(a, value):
        a = a.copy()
        a[1, 2] = value
        return a

    cases = [
        (dict(Z=Z[0]), r"shape \(16,\)"), (dict(Z=Z[:, :5]), r"shape \(3, 5\).*\[N, 16\]"),
        (dict(C=C[None]), r"shape \(1, 24, 16\); give \[K, d\]"), (dict(C=C[:0]), r"shape \(0, 16\)"),
        (dict(Z=bad(Z, np.nan)), "Sample 1 holds NaN"), (dict(Z=bad(Z, -np.inf)), "Sample 1 holds NaN or infinite"),
        (dict(C=bad(C, np.nan)), "Row 1 of the concept dictionary"), (dict(C=bad(C, np.inf)), "Row 1 of the concept"),
        (dict(C=1e25 * C), r"norm 1e\+25.*scale"), (dict(C=1e-25 * C), "norm 1e-25.*scale"),
        (dict(Z=Z * np.float32(1e25)), "Samples hold values up to.*scale"),
        (dict(l1=None), "give exactly one"), (dict(lam=0.1), "give exactly one"),
        (dict(l1=0), "above 0"), (dict(l1=-1), "above 0"), (dict(l1=np.nan), "finite"), (dict(l1=np.inf), "finite"),
        (dict(l1=None, lam=-0.1), "above 0"), (dict(l1=[0.1, 0.0, 0.1]), "above 0"),
        (dict(l1=[0.1, 0.2]), r"shape \(2,\).*3 samples"), (dict(l1=np.full((3, 1), 0.1)), r"shape \(3, 1\)"),
        (dict(tol=-1.0), "tol=-1"), (dict(tol=np.nan), "tol=nan"), (dict(threads=0), "threads=0"),
        (dict(threads=1.5), "threads=1.5"), (dict(method="simplex"), "Unknown solver 'simplex'; known are active_set"),
    ]  # fmt: skip
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            solve(**{"Z": Z, "C": C, "l1": 0.1, "method": method, **changed})
