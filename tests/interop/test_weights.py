"""What is worked into weights in double precision, a part at a time."""

import math

import pytest
import torch

from vlsae.interop.overcomplete_layers import EPSILON, NORMALIZATIONS, ROWS, normalised
from vlsae.interop.weights import LATENTS, bias_of_raw_input


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("n", [1, LATENTS, 3 * LATENTS + 1])
def test_a_bias_is_folded_as_if_exactly_and_rounded_once(n, turned):
    """Exact sums of the exact products, which double precision misses by far less than half a unit of float32's last place."""
    generator = torch.Generator().manual_seed(n)
    W_enc, b_enc, b_dec = (torch.randn(size, generator=generator) for size in ((40, n), (n,), (40,)))
    W_enc = W_enc.T.contiguous().T if turned else W_enc
    products = b_dec.double()[:, None] * W_enc.double()  # of numbers with 24 bits each, so exact
    exact = [math.fsum([*column, bias]) for column, bias in zip(products.T.tolist(), b_enc.tolist(), strict=True)]
    found = bias_of_raw_input(W_enc, b_enc, b_dec)
    assert torch.equal(found, torch.tensor(exact, dtype=torch.float64).float())
    assert torch.equal(found, (b_enc.double() + b_dec.double() @ W_enc.double()).float())


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_rows_are_normalised_in_double_precision_and_rounded_once(how):
    """Whole, as the library does it, against a few rows at a time: the largest norm stands among the last ones."""
    weights = torch.randn(2 * ROWS + 3, 40, generator=torch.Generator().manual_seed(0))
    weights[-1] *= 9
    given, scale = weights.clone(), torch.tensor([0.3], dtype=torch.float64).exp()
    norms = weights.double().norm(p=1 if how.endswith("l1") else 2, dim=1, keepdim=True)
    by = {"identity": torch.ones(1), "l1": norms + EPSILON, "l2": norms + EPSILON}.get(how, norms.max())
    found = normalised(weights, how, scale)
    assert torch.equal(found, (weights.double() / by * scale).float()) and torch.equal(weights, given)
