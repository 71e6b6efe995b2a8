"""Gated and tied dictionaries, and what shrinkage is."""

import pytest
import torch
import torch.nn.functional as F

from tests.training.test_training import matched_cosine
from vlsae.dictionaries.gated import GatedDictionary
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.tied import TiedDictionary
from vlsae.metrics.matching import mmcs
from vlsae.metrics.shrinkage import refine, relative_reconstruction_bias
from vlsae.training import train
from vlsae.training.config import TrainConfig
from vlsae.training.objectives import Step
from vlsae.training.objectives.base import Start
from vlsae.training.objectives.gate import Gate
from vlsae.training.objectives.reconstruction import Reconstruction
from vlsae.world import planted

X = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
RECIPE = {"n_latents": 64, "steps": 2000, "batch_size": 512, "lr": 3e-3, "dead_after_tokens": 20_000, "progress": False}


def _random_gated():
    sae = GatedDictionary(8, 30, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (sae.r_mag, sae.b_mag, sae.b_enc, sae.b_dec):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return sae.double()


def test_gated_is_jumprelu_exactly():
    """Card 2, test 1: also where the gap is negative and the ReLU cuts (about half of the latents here)."""
    sae = _random_gated()
    other = sae.to_jumprelu()
    gaps = sae.b_mag - sae.r_mag.exp() * sae.b_enc
    assert 0.2 < (gaps < 0).double().mean() < 0.8
    z, jump = sae.encode(X.double()), other.encode(X.double())
    assert torch.equal(z > 0, jump > 0)
    assert torch.allclose(z, jump, atol=1e-12)
    assert torch.allclose(sae(X.double()), other(X.double()), atol=1e-12)


def _step(sae, x):
    trace = sae.trace(x)
    dead = torch.zeros(sae.n_latents, dtype=torch.bool)
    return Step(sae, x, trace.pre, trace.z, trace.xhat, dead, trace.extras)


def test_gradients_go_where_the_paper_sends_them():
    """Card 2, test 2: the gate's terms leave decoder and magnitudes alone; the reconstruction leaves the gate's bias."""
    sae = _random_gated()
    gate = Gate.make(TrainConfig(l1=0.3), Start(8, 1.0))
    gate(_step(sae, X.double())).backward()
    assert sae.W_dec.grad is None or sae.W_dec.grad.abs().max() == 0
    for parameter in (sae.r_mag, sae.b_mag):
        assert parameter.grad is None or parameter.grad.abs().max() == 0
    assert sae.b_enc.grad.abs().max() > 0
    sae.zero_grad(set_to_none=True)
    Reconstruction("sum")(_step(sae, X.double())).backward()
    assert sae.b_enc.grad is None or sae.b_enc.grad.abs().max() == 0
    assert sae.W_dec.grad.abs().max() > 0
    assert sae.b_mag.grad.abs().max() > 0


def test_a_trace_is_what_encoding_gives():
    sae = _random_gated()
    assert torch.allclose(sae.trace(X.double()).z, sae.encode(X.double()), atol=1e-12)


def test_l1_shrinks_by_half_the_penalty_and_the_gate_does_not():
    """Card 2, test 3: orthonormal atoms at magnitude 1 and penalty .2: `gamma = 1 - .2 / 2` for L1, 1 for the gate."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    x = (torch.rand(20_000, 16, generator=generator) < 0.15).float() @ atoms
    recipe = {**RECIPE, "n_latents": 16, "lr": 0.01, "steps": 1500, "b_dec_init": "zeros", "l1": 0.2}
    bias = {}
    for family, options in (("relu", {}), ("gated", {"target_l0": 0.15 * 16})):
        sae = train(x, family, dead_policy="none", **recipe, **options)
        assert matched_cosine(atoms, sae.atoms).mean() > 0.99
        assert (sae.encode(x) > 0).sum(1).float().mean() == pytest.approx(0.15 * 16, rel=0.02)
        bias[family] = relative_reconstruction_bias(x - sae.b_dec, sae(x) - sae.b_dec)
    assert bias["relu"] == pytest.approx(0.9, abs=0.005)
    assert bias["gated"] == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("penalty", [0.2, 0.5, 1.0])
def test_the_optimum_of_l1_shrinks_by_half_the_penalty(penalty):
    """Card 2, test 3: `gamma = 1 - penalty / (2 s)` at s = 1: .9, .75, .5, whatever the encoder does about it.

    With a free decoder bias, which trained ones have, large penalties move the data's mean there and shrink more.
    """
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    x = (torch.rand(4000, 16, generator=generator) < 0.15).float() @ atoms
    sae = ReLUDictionary(16, 16)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
    optimizer = torch.optim.Adam([sae.W_enc, sae.b_enc], lr=0.01)
    for _ in range(300):
        z = sae.encode(x)
        loss = (x - sae.decode(z)).square().sum(1).mean() + penalty * z.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert relative_reconstruction_bias(x, sae(x).detach()) == pytest.approx(1 - penalty / 2, abs=0.002)


def test_the_bias_is_the_best_scalar():
    """Card 2, test 4: against a search, and 1 for the least-squares reconstruction."""
    y = X @ torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    gamma = relative_reconstruction_bias(X, y)
    errors = [(y / g - X).square().sum().item() for g in (0.99 * gamma, gamma, 1.01 * gamma)]
    assert errors[1] < min(errors[0], errors[2])
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(4)))[0]
    assert relative_reconstruction_bias(X, X @ basis @ basis.T) == pytest.approx(1, abs=1e-6)


def test_gated_recovers_a_planted_dictionary_with_true_magnitudes():
    """Card 2, test 5: at one L0, atoms at least as good as with L1, and magnitudes nearer to the truth."""
    truth = planted(32, 64, 3)
    x, _ = truth.sample(40_000)
    test, z_true = truth.sample(4000, part=1)
    cosine, slope = {}, {}
    for family in ("relu", "gated"):
        sae = train(x, family, target_l0=3.0, **{**RECIPE, "n_latents": 64})
        z, partner = sae.encode(test), (truth.atoms @ sae.atoms.T).argmax(1)
        cosine[family] = matched_cosine(truth.atoms, sae.atoms).mean().item()
        found, on = z[:, partner], (z_true > 0) & (z[:, partner] > 0)
        slope[family] = ((found * z_true)[on].sum() / z_true[on].square().sum()).item()
    assert cosine["gated"] > cosine["relu"] - 0.005
    assert cosine["gated"] > 0.9
    assert abs(slope["gated"] - 1) < 0.5 * abs(slope["relu"] - 1)


def test_refinement_leaves_codes_of_orthonormal_atoms_alone_and_grows_shrunk_ones():
    """Gao et al. 2024: codes are already optimal exactly where the active atoms are orthonormal."""
    basis = ProjectionDictionary(8, 8, k=8, seed=2)
    sae = GatedDictionary(8, 8)
    with torch.no_grad():
        sae.W_dec.copy_(basis.W_dec)
        sae.W_enc.copy_(basis.W_enc)
    assert torch.allclose(refine(sae, X), sae.encode(X), atol=1e-5)
    with torch.no_grad():
        sae.b_mag.fill_(-0.1)
    z = sae.encode(X)
    on = z > 0
    assert torch.allclose(refine(sae, X)[on], z[on] + 0.1, atol=1e-5)
    other = GatedDictionary(8, 30, seed=4)
    assert not torch.allclose(refine(other, X), other.encode(X), atol=1e-2)


# ---- tied ------------------------------------------------------------------------------------------------------------


def test_tied_recovers_a_planted_dictionary_better_than_bases_do():
    """Card 1, test 1: MMCS at least .9, against .4 by chance."""
    truth = planted(32, 64, 3)
    x, _ = truth.sample(40_000)
    sae = train(x, "tied", l1=0.3, dead_policy="auxk", **RECIPE)
    assert mmcs(truth.atoms, sae.atoms) >= 0.9
    for basis in (ProjectionDictionary.pca(x, 3), ProjectionDictionary.ica(x, 3), ProjectionDictionary.rotation(x, 3)):
        assert mmcs(truth.atoms, torch.cat([basis.atoms, -basis.atoms])) < 0.8


def test_tied_has_one_matrix_and_does_not_see_its_lengths():
    """Card 1, test 2."""
    sae = TiedDictionary(8, 20, seed=1)
    z, xhat = sae.encode(X), sae(X)
    with torch.no_grad():
        sae.rows.mul_(torch.linspace(0.1, 9, 20)[:, None])
    assert torch.allclose(sae.encode(X), z, atol=1e-5)
    assert torch.allclose(sae(X), xhat, atol=1e-5)
    assert [name for name, p in sae.named_parameters() if p.ndim == 2] == ["rows"]
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_the_best_tied_bias_is_minus_half_the_penalty():
    """Card 1, test 3: orthonormal atoms: codes of least loss are `max(s - alpha / 2, 0)`, a bias of `-alpha / 2`."""
    alpha, generator = 0.4, torch.Generator().manual_seed(0)
    s = 2 * torch.rand(20_000, 8, generator=generator) * (torch.rand(20_000, 8, generator=generator) < 0.3)
    sae = TiedDictionary(8, 8)
    with torch.no_grad():
        sae.rows.copy_(torch.eye(8))
    optimizer = torch.optim.Adam([sae.b_enc], lr=0.01)
    for _ in range(300):
        trace = sae.trace(s)
        loss = (s - trace.xhat).square().sum(1).mean() + alpha * trace.z.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(sae.b_enc, torch.full((8,), -alpha / 2), atol=0.01)
    free = torch.relu(s - alpha / 2)
    assert torch.allclose(sae.encode(s), free, atol=0.01)
    assert torch.allclose(F.normalize(sae.rows, dim=1), sae.atoms)
