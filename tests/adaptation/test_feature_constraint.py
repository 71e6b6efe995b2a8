"""The loss of FPO in closed form, pooling, and tuning that leaves protected latents where they are."""

import math

import pytest
import torch

from vlsae.adaptation.feature_constraint import FeatureConstraint, fpo_loss, pooled_codes
from vlsae.adaptation.tuning import adapt
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.world import scenes

SITE = "vision.-1.resid_post"


def test_at_the_reference_the_loss_is_log_2(tiny):
    constraint = FeatureConstraint(ReLUDictionary(tiny.tokens(scenes(1), SITE).shape[-1], 32), SITE, k=5)
    pixels = tiny.pixels(scenes(2, seed=1))
    cached = constraint.reference(tiny, pixels)
    delta = constraint.delta(constraint.reference(tiny, pixels), cached)
    assert delta.tolist() == [0.0, 0.0]
    # with gradients torch sums products in another order: codes of order 1 differ by some 1e-5, their squares by 1e-10
    assert constraint.delta(constraint.codes(tiny, pixels), cached).max() < 1e-8
    zero = torch.zeros(2)
    assert fpo_loss(zero, zero, delta, delta).item() == pytest.approx(math.log(2), abs=1e-7)


def test_the_loss_is_dpo_without_alpha_and_has_the_right_gradients():
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(3, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    dpo = torch.log1p(torch.exp(-0.1 * (parts[0] - parts[1]))).mean()
    assert torch.allclose(fpo_loss(*parts, alpha=0.0), dpo)
    fpo_loss(*parts).backward()
    assert parts[2].grad is None  # the chosen side's discrepancy is a constant
    free = [p for i, p in enumerate(parts) if i != 2]
    assert torch.autograd.gradcheck(lambda w, r, low: fpo_loss(w, r, parts[2].detach(), low), free)


def test_delta_agrees_with_finite_differences_and_takes_the_tuned_models_strongest():
    constraint = FeatureConstraint(ReLUDictionary(4, 8), SITE, k=2)
    g = torch.Generator().manual_seed(1)
    codes = torch.rand(3, 8, generator=g, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(3, 8, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: constraint.delta(c, reference), [codes])
    by_hand = [sum((reference[i, j] - codes[i, j]) ** 2 for j in codes[i].argsort()[-2:]) / 2 for i in range(3)]
    assert torch.allclose(constraint.delta(codes, reference), torch.stack(by_hand))


def test_pooling_ignores_padding():
    sae = ReLUDictionary(4, 8)
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([tokens, torch.full((2, 5, 4), float("nan"))], 1)
    mask = torch.arange(8).expand(2, 8) < 3
    assert torch.allclose(pooled_codes(sae, padded, mask), sae.encode(tokens).mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="no token"):
        pooled_codes(sae, tokens, torch.zeros(2, 3))


@pytest.mark.slow
def test_the_penalty_keeps_protected_latents(tiny):
    """The same run with and without: drift of what is protected falls to a tenth or less."""
    drawn = scenes(4, seed=3, n_objects=(1, 0, 0, 0), names=("cat", "ball"))
    labels = [int(scene.objects[0].name == "cat") for scene in drawn]
    sae = ReLUDictionary(tiny.tokens(drawn[:1], SITE).shape[-1], 32, seed=1)
    constraint = FeatureConstraint(sae, SITE, latents=range(8))
    reference = constraint.reference(tiny, tiny.pixels(drawn))
    drift = {}
    for weight in (0.0, 1000.0):
        adapted = adapt(tiny, drawn, "vpt", labels=labels, class_names=["cat", "ball"], shots=0, n_prompts=2, lr=0.01,
                        optimizer="adamw", batch_size=8, epochs=6, warm_up_lr=0.0, progress=False,
                        penalty=constraint.penalty(weight))  # fmt: skip
        with torch.no_grad():
            drift[weight] = float(constraint.delta(constraint.codes(adapted, adapted.pixels(drawn)), reference).mean())
    assert drift[1000.0] < 0.1 * drift[0.0], drift
    assert all(p.grad is None for p in sae.parameters())
