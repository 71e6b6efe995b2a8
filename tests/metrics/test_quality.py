"""Quality metrics of Gao et al. 2024 in closed form or with planted answers, and what Multi-TopK and Matryoshka promise."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.ablation_sparsity import ablation_sparsity
from vlsae.metrics.probe_loss import probe_losses
from vlsae.metrics.scaling_law import ScalingLaw, fit_scaling_law
from vlsae.training import train
from vlsae.training.objectives.end_to_end import output_kl
from vlsae.world import planted

RECIPE = {"n_latents": 64, "steps": 1200, "batch_size": 512, "lr": 3e-3, "dead_after_tokens": 20_000, "progress": False}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_probe_loss_is_the_entropy_for_noise_and_zero_for_a_separating_latent():
    """Card 7, test 8."""
    labels = torch.rand(20_000, generator=_generator(1)) < 0.3
    noise, constant = torch.randn(20_000, generator=_generator(2)), torch.ones(20_000)
    found = probe_losses(torch.stack([noise, constant, labels.float()], 1), labels)
    share = labels.double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert found[:2].tolist() == pytest.approx([entropy, entropy], abs=1e-3)
    assert found[2] < 1e-3


def test_probe_loss_is_scikit_learns():
    labels = torch.rand(800, generator=_generator(3)) < 0.4
    z = torch.randn(800, 4, generator=_generator(4)) + labels[:, None] * torch.tensor([0.0, 0.5, 1.0, 3.0])
    found = probe_losses(z, labels)
    for i in range(4):
        other = LogisticRegression(C=1e8).fit(z[:, i : i + 1], labels)
        assert found[i].item() == pytest.approx(log_loss(labels, other.predict_proba(z[:, i : i + 1])), abs=1e-4)
    with pytest.raises(ValueError, match="both values there"):
        probe_losses(z, torch.ones(800, dtype=torch.bool))


def test_ablation_sparsity_of_one_and_of_all():
    """Card 7, test 8: `1 / size` for one output, 1 where all move alike, m / size for m of them."""
    one, some = torch.zeros(40), torch.zeros(40)
    one[3], some[:8] = -2.0, 0.5
    signs = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    assert ablation_sparsity(one).item() == pytest.approx(1 / 40)
    assert ablation_sparsity(some + 7).item() == pytest.approx(8 / 40)
    assert ablation_sparsity(torch.cat([signs, torch.zeros(1)])).item() == pytest.approx(40 / 41)
    assert ablation_sparsity(torch.zeros(2, 5)).tolist() == [0, 0]


def test_removing_a_concept_moves_its_class_alone_where_principal_axes_must_move_together():
    """Card 1, test 5, in closed form: classes read one concept each, `logits = 4 x R^T`, concepts are equally large.

    Taking a latent of the true dictionary out of `x` changes the logit of its class, by `-4 z_j`, and no other: an
    ablation sparsity of 1/16. To make a run with the concept the same as without it one latent is enough; of principal
    axes, those that change most first, several are needed for a KL below 1e-3 (measured: 13 to 15 of 16).
    """
    atoms = torch.linalg.qr(torch.randn(16, 16, generator=_generator(20)))[0]
    there = torch.rand(3000, 16, generator=_generator(21)) < 0.3
    x = (there * (1 + torch.rand(3000, 16, generator=_generator(22)))) @ atoms
    sae, pca = ReLUDictionary(16, 16), ProjectionDictionary.pca(x, 16)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
    for j in range(16):
        before = x[there[:, j]][:40]
        codes, only = sae.encode(before).detach(), torch.arange(16) == j
        after = before + sae.decode(codes.where(~only, 0.0)).detach() - sae.decode(codes).detach()
        change = 4 * (before - after) @ atoms.T
        assert torch.allclose(change, 4 * codes * only, atol=1e-4)
        assert torch.allclose(ablation_sparsity(change), torch.full((40,), 1 / 16, dtype=torch.float64), atol=1e-4)
        step = pca.encode(after) - pca.encode(before)
        rank = step.abs().argsort(dim=1, descending=True).argsort(dim=1)
        patched = [before + step.where(rank < count, 0.0) @ pca.atoms for count in range(17)]
        kl = [output_kl(4 * after @ atoms.T, 4 * run @ atoms.T).item() for run in patched]
        assert kl[10] > 1e-3
        assert kl[16] < 1e-6


def test_a_planted_scaling_law_is_found():
    """Card 7, test 10: all six numbers to 1 % (or .01), from a grid of 30 exact losses."""
    truth = ScalingLaw(-0.5, 0.26, -0.017, -0.042, -1.32, -0.085)
    n, k = (values.ravel() for values in np.meshgrid(2.0 ** np.arange(9, 21, 2), 2.0 ** np.arange(3, 8)))
    found = fit_scaling_law(n, k, truth(n, k))
    assert np.allclose(found(n, k), truth(n, k), rtol=1e-4)
    steep = ScalingLaw(1.0, -0.3, -0.4, 0.01, -3.0, -0.2)
    found = fit_scaling_law(n, k, steep(n, k))
    for name in ("b_n", "zeta", "eta", "gamma"):
        assert getattr(found, name) == pytest.approx(getattr(steep, name), rel=0.01, abs=0.01)
    with pytest.raises(ValueError, match="at least 8"):
        fit_scaling_law([1], [1], [1])


def test_multi_topk_stays_good_beyond_its_k():
    """Trained at k = 3 and read at 12: the error with Multi-TopK is clearly lower than without."""
    truth = planted(32, 64, 6)
    x, test = truth.sample(20_000)[0], truth.sample(2000, part=1)[0]
    errors = {}
    for name, objectives in (("plain", ""), ("multi", "reconstruction,multi_topk")):
        sae = train(x, "topk", k=3, objectives=objectives, dead_policy="auxk", **{**RECIPE, "steps": 500})
        sae.k = 12
        errors[name] = (test - sae(test)).square().sum(1).mean().item()
    assert errors["multi"] < 0.6 * errors["plain"]
    with pytest.raises(ValueError, match="'relu' has no k"):
        train(x, "relu", objectives="multi_topk", **RECIPE)
