"""Choosing from pre-activations: equal to torch's dense choice, with ties, odd widths, and a rounded product."""

import pytest
import torch

from vlsae.dictionaries import selection, selection_tensors
from vlsae.dictionaries.selection import Products, largest, likely_bound, positive, top_k


def _problem(n, d=12, rows=70, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d, generator=g), torch.randn(n, d, generator=g), 0.3 * torch.randn(n, generator=g)


def _dense(rows, n):
    z = torch.zeros(len(rows), n)
    z[rows.numbers, rows.idx.long()] = rows.val
    return z


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def finder(request, monkeypatch):
    """Both ways to look through a block: of the processor, and of every other device."""
    if request.param == "torch":
        monkeypatch.setattr(Products, "finder", selection_tensors)


@pytest.mark.parametrize("n", [5, 64, 100, 1000])
@pytest.mark.parametrize("k", [1, 4, 5])
@pytest.mark.parametrize("signed", [False, True])
def test_top_k_is_torchs(n, k, signed, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 32 * n)
    x, W, b = _problem(n)
    pre = x @ W.T + b
    at = (pre.abs() if signed else pre).topk(k).indices
    kept = pre.gather(1, at) if signed else pre.gather(1, at).relu()
    assert torch.allclose(
        _dense(top_k(Products(x, W, b), k, signed=signed), n), torch.zeros_like(pre).scatter(1, at, kept), atol=1e-5
    )


def test_ties_go_to_the_lower_latent():
    x, W = torch.ones(3, 2), torch.ones(100, 2)
    assert top_k(Products(x, W, torch.zeros(100)), 4).idx.reshape(3, 4).tolist() == [[0, 1, 2, 3]] * 3


def test_all_positive_ones_and_the_largest_of_a_batch(monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 32 * 300)
    x, W, b = _problem(300)
    pre = (x @ W.T + b).relu()
    assert torch.allclose(_dense(positive(Products(x, W, b), room=2), 300), pre, atol=1e-5)
    flat = pre.flatten()
    best = flat.topk(70 * 3)
    expected = torch.zeros_like(flat).scatter(0, best.indices, best.values).reshape(pre.shape)
    bound = likely_bound(Products(x, W, b), 70 * 3)
    assert 0 < bound < float(best.values[-1])
    rows = positive(Products(x, W, b), bound)
    assert torch.allclose(_dense(rows.keep(largest(rows.val, 70 * 3)), 300), expected, atol=1e-5)


def test_the_largest_of_equal_values_are_the_first():
    values = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0, 2.0])
    for wanted, places in ((2, [1, 3]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4, 5])):
        assert largest(values, wanted).nonzero()[:, 0].tolist() == places


def test_a_rounded_product_chooses_the_same():
    """Candidates within the margin are computed again: supports differ at most where scores are equal to 1e-6."""
    x, W, b = _problem(5000, d=96, rows=200)
    exact, rounded = (top_k(Products(x, W, b, low), 16) for low in (None, W.bfloat16()))
    assert torch.equal(exact.idx, rounded.idx)
    assert (exact.val - rounded.val).abs().max() < 1e-4
    exact, rounded = (positive(Products(x, W, b, low), 10.0) for low in (None, W.bfloat16()))
    assert torch.equal(exact.idx, rounded.idx)


def _wide(n, ties):
    """Scores of few different values where `ties`, else all different."""
    g = torch.Generator().manual_seed(n)
    return torch.randint(0, 40, (50, n), generator=g).float() if ties else torch.rand(50, n, generator=g)


@pytest.mark.parametrize("n", [4096, 4096 + 37, 8192])
@pytest.mark.parametrize("ties", [False, True])
def test_leaders_are_found_in_a_few_groups(n, ties):
    """The same values as `torch.topk` of whole rows, at columns that hold them, also where columns are left over."""
    score = _wide(n, ties)
    values, at = selection_tensors.leaders(score, 5)
    assert torch.equal(values, score.topk(5).values)
    assert torch.equal(score.gather(1, at), values)
    assert all(len(set(row)) == 5 for row in at.tolist())


@pytest.mark.parametrize("equal", [2, 20, 200])
def test_ties_across_groups_go_to_the_lower_latent(equal):
    """Few ties are settled among the spared ones, many among all."""
    n, k = 30_000, 8
    W = torch.zeros(n, 1)
    W[100::100][: k - 1] = 2.0  # 7 that are chosen in any case
    W[50::100][:equal] = 1.0
    found = top_k(Products(torch.ones(3, 1), W, torch.zeros(n)), k)
    assert found.idx.reshape(3, k).tolist() == [[50, *range(100, 800, 100)]] * 3
