"""Layers of latents: the law of total variance, and codes whose spread is known."""

import pytest
import torch

from vlsae.metrics.layers import layer_distribution, layer_variance


def test_law_of_total_variance():
    """Both decompositions add up, on codes without any structure; float64 sums, so 1e-12."""
    z = torch.rand(40, 5, 7, generator=torch.Generator().manual_seed(0)) ** 4
    parts = layer_variance(z)
    assert parts.total == pytest.approx(parts.within_latent + parts.between_latents, abs=1e-12)
    assert parts.within_latent == pytest.approx(parts.within_latent_token + parts.between_tokens, abs=1e-12)
    layer = torch.arange(5.0).double()
    mass = z.double().sum((0, 2)) / z.double().sum()
    assert parts.total == pytest.approx(float((mass * layer**2).sum() - (mass * layer).sum() ** 2), abs=1e-12)


@pytest.mark.parametrize("L", [2, 6, 12])
def test_latents_spread_over_all_layers(L):
    parts = layer_variance(torch.ones(3, L, 4))
    known = pytest.approx((L**2 - 1) / 12, rel=1e-12)
    assert parts.total == known
    assert parts.within_latent == known
    assert parts.within_latent_token == known
    assert parts.token_ratio == pytest.approx(1)


def test_a_latent_with_one_layer_and_a_token_with_one_layer():
    one_layer = layer_variance(torch.eye(4).expand(3, 4, 4))
    assert one_layer.total == pytest.approx(15 / 12)
    assert one_layer.within_latent == 0
    one_per_token = layer_variance(torch.eye(4)[:, :, None].expand(4, 4, 3))  # token t is at layer t
    assert one_per_token.latent_ratio == pytest.approx(1)
    assert one_per_token.token_ratio == 0


def test_distribution_and_refusals():
    z = torch.zeros(2, 3, 2)
    z[0, 1, 0], z[1, 2, 0] = 1.0, 3.0
    assert layer_distribution(z)[0].tolist() == [0.0, 0.25, 0.75]
    assert layer_distribution(z)[1].isnan().all()
    with pytest.raises(ValueError, match="minimum -1"):
        layer_distribution(-torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="no layer is active"):
        layer_variance(torch.zeros(2, 3, 2))
