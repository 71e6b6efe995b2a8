"""VAEase: its loss in closed form, its gate, and the dimension it finds."""

import math

import pytest
import torch

from vlsae.dictionaries.vaease import VAEaseDictionary
from vlsae.metrics.active_dimension import active_dimension, otsu
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.elbo import ELBO


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(40, 8, generator=_generator())


def _step(sae, x, trace):
    return Step(sae, x, trace.pre, trace.z, trace.xhat, torch.zeros(sae.n_latents, dtype=torch.bool), trace.extras)


def test_loss_is_that_of_torch_distributions():
    """Card 25, test a: twice the divergence from the standard normal, and the Gaussian error."""
    sae = VAEaseDictionary(8, 5, log_gamma=-1.0, seed=1)
    trace = sae.trace(X)
    posterior = torch.distributions.Normal(trace.extras["mu"], trace.extras["variance"].sqrt())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    expected = (X - trace.xhat).square().sum(1).mean() * math.e - 8 + 2 * kl
    assert ELBO()(_step(sae, X, trace)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_latent_that_is_off_says_nothing():
    """Card 25, test a: at sigma = 1 the gate is 0, whatever the latent's value."""
    sae = VAEaseDictionary(8, 5, seed=1)
    with torch.no_grad():
        sae.weights[1][:, 2] = 0
        sae.biases[1][2] = 100.0
    assert (sae.encode(X)[:, 2] == 0).all()
    before = sae(X)
    with torch.no_grad():
        sae.weights[0][:, 2] *= 5
    assert torch.allclose(sae(X), before, atol=1e-6)


def test_without_the_gate_it_is_a_plain_vae():
    """Card 25, test e: the same noise gives `mu + sigma eps` as codes, and `mu` in inference."""
    gated, plain = VAEaseDictionary(8, 5, seed=1), VAEaseDictionary(8, 5, gated=False, seed=1)
    trace, other = gated.trace(X), plain.trace(X)
    assert torch.allclose(trace.z, (1 - trace.extras["variance"].sqrt()) * other.z, atol=1e-6)
    assert torch.equal(plain.encode(X), plain.posterior(X)[0])


def test_noise_is_drawn_anew_and_goes_on_after_a_checkpoint():
    sae, again = VAEaseDictionary(8, 5, seed=1), VAEaseDictionary(8, 5, seed=1)
    first, second = sae.trace(X).z, sae.trace(X).z
    assert not torch.equal(first, second)
    assert torch.equal(again.trace(X).z, first)
    again.load_state_dict(sae.state_dict())
    assert torch.equal(again.trace(X).z, sae.trace(X).z)


@pytest.mark.parametrize(("kind", "gated"), [("vaease", True), ("vae", False)])
def test_loss_falls_with_gamma_at_the_slope_of_the_unused_dimensions(kind, gated):
    """Card 25, test c: at hand-built optima the loss is `(d - r) log gamma + O(1)` with `r` the active latents.

    Two subspaces of 2 and 3 of 8 coordinates, equally likely: a gate per input pays for 2.5 on average, a fixed
    support for all 5.
    """
    d, subspaces = 8, ([0, 1], [2, 3, 4])

    def loss(gamma):
        total = 0.0
        for own in subspaces:
            active = own if gated else [0, 1, 2, 3, 4]
            x = torch.zeros(4000, d, dtype=torch.float64)
            x[:, own] = torch.randn(4000, len(own), generator=_generator(1), dtype=torch.float64)
            variance = torch.ones(4000, 5, dtype=torch.float64)
            variance[:, active] = gamma
            mu = x[:, :5].clone() / (1 - variance.sqrt()).where(variance < 1, torch.ones_like(variance))
            mu = torch.where(variance < 1, mu, torch.zeros_like(mu)) if gated else x[:, :5]
            eps = torch.randn(4000, 5, generator=_generator(2), dtype=torch.float64)
            z = mu + variance.sqrt() * eps
            xhat = torch.zeros_like(x)
            xhat[:, :5] = (1 - variance.sqrt()) * z if gated else z
            sae = type("Sae", (), {"log_gamma": torch.tensor([math.log(gamma)], dtype=torch.float64)})
            total += ELBO()(Step(sae, x, None, z, xhat, None, {"mu": mu, "variance": variance})).item() / 2
        return total

    slope = (loss(1e-6) - loss(1e-9)) / (math.log(1e-6) - math.log(1e-9))
    assert slope == pytest.approx(d - (2.5 if gated else 5), abs=0.02)


def test_it_finds_the_dimension_of_each_subspace():
    """Card 25, test b: union of subspaces of 2, 3 and 4 dimensions in R^40: as many latents on, and other ones.

    A plain variational autoencoder keeps one support, all 9, on for every input; so do the principal axes.
    """
    basis = torch.linalg.qr(torch.randn(40, 40, generator=_generator(3)))[0]
    parts, begin = [], 0
    for m in (2, 3, 4):
        parts.append(torch.randn(6000, m, generator=_generator(m)) @ basis[begin : begin + m])
        begin += m
    options = {"batch_size": 512, "lr": 3e-3, "schedule": "cosine", "decay": 1.0, "progress": False, "hidden": 64}
    options |= {"n_latents": 16, "b_dec_init": "zeros", "log_gamma": -4.0}
    sae = train(torch.cat(parts), "vaease", steps=3000, **options)
    log_variance = [sae.variance(part).log() for part in parts]
    found = [active_dimension(values).float().mean().item() for values in log_variance]
    assert found == pytest.approx([2, 3, 4], abs=0.15)
    on = torch.stack([(values.exp() < 0.5).float().mean(0) > 0.5 for values in log_variance])
    assert on.sum(1).tolist() == [2, 3, 4]
    assert (on.sum(0) <= 1).all()
    plain = train(torch.cat(parts), "vaease", steps=600, gated=False, **options)
    fixed = [active_dimension(plain.variance(part).log()).float().mean().item() for part in parts]
    assert min(fixed) > 8.5  # a tenth latent may still be fading
    assert torch.linalg.matrix_rank(torch.cat(parts), rtol=1e-4) == 9


def test_otsu_on_two_heaps():
    values = torch.tensor([[5.0, 0.1, 0.0, 5.2, 0.3, 4.9], [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]])
    assert otsu(values).tolist() == pytest.approx([0.3, 1.0])
    assert active_dimension(values).tolist() == [3, 3]
