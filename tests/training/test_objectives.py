"""Objectives against hand-computed values and the properties their papers state."""

import pytest
import torch

from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.training.objectives import OBJECTIVES, Step, explained_variance
from vlsae.training.objectives.auxk import AuxK
from vlsae.training.objectives.base import Start
from vlsae.training.objectives.ghost import GhostGradients
from vlsae.training.objectives.l1 import L1
from vlsae.training.objectives.reconstruction import Reconstruction
from vlsae.training.objectives.unselected import Unselected
from vlsae.training.recipe import constructor_arguments, make_config, objective_names
from vlsae.training.start import geometric_median, total_variance

X = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
XHAT = torch.tensor([[3.0, 3.0], [1.0, 0.0]])


def _step(sae, x, dead=None):
    pre = sae.pre(x)
    z = sae.activate(pre)
    dead = torch.zeros(sae.n_latents, dtype=torch.bool) if dead is None else dead
    return Step(sae, x, pre, z, sae.decode(z), dead)


def test_three_scales_of_the_squared_error_by_hand():
    """Errors 1 and 5; norms 5 and 2; d = 2."""
    step = Step(None, X, None, None, XHAT, None)
    assert Reconstruction("sum")(step).item() == pytest.approx((1 + 5) / 2)
    assert Reconstruction("patchsae")(step).item() == pytest.approx((1 / 5 + 5 / 2) / 4)
    assert Reconstruction("variance", 4.0)(step).item() == pytest.approx((1 + 5) / 2 / 4)


def test_patchsae_scale_in_the_papers_convention():
    """Card 14: 8e-5 on the released code's scale is about 8e-5 * d * ||x|| in the papers' (equal norms: exactly)."""
    generator = torch.Generator().manual_seed(0)
    sae = ReLUDictionary(8, 16)
    x = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator), dim=1) * 7.0
    step = _step(sae, x)
    code = Reconstruction("patchsae")(step) + L1(8e-5)(step)
    paper = Reconstruction("sum")(step) + L1(8e-5 * 8 * 7.0)(step)
    assert torch.allclose(code * 8 * 7.0, paper, rtol=1e-5)


def test_l1_by_hand():
    step = Step(None, X, None, torch.tensor([[1.0, 0.5], [0.0, 2.0]]), XHAT, None)
    assert L1(0.1)(step).item() == pytest.approx(0.1 * (1.5 + 2.0) / 2)


@pytest.fixture
def dead_case():
    sae = TopKDictionary(6, 12, k=2, seed=3)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[1, 5, 7]] = True
    return sae, x, dead


def test_auxk_reaches_dead_latents_only(dead_case):
    """Card 7, test 2: alive rows and the decoder's bias get no gradient from AuxK; dead rows with pre > 0 do."""
    sae, x, dead = dead_case
    AuxK(k=2, coefficient=1.0)(_step(sae, x, dead)).backward()
    assert sae.W_dec.grad[~dead].abs().max() == 0
    assert sae.W_enc.grad[:, ~dead].abs().max() == 0
    assert sae.W_dec.grad[dead].norm(dim=1).min() > 0


def test_auxk_without_dead_latents_is_zero_not_nan(dead_case):
    sae, x, dead = dead_case
    assert AuxK(4, 1.0)(_step(sae, x)).item() == 0
    perfect = _step(sae, x, dead)
    perfect.xhat = x.clone()
    assert AuxK(4, 1.0)(perfect).item() == 0
    assert AuxK(4, 1.0)(_step(sae, x[:1], dead)).item() == 0


def test_auxk_does_not_see_a_shift_of_data_and_bias(dead_case):
    """Card 7, test 3: the auxiliary reconstruction has no decoder bias."""
    sae, x, dead = dead_case
    before = AuxK(2, 1.0)(_step(sae, x, dead)).item()
    shift = torch.linspace(-2, 2, 6)
    with torch.no_grad():
        sae.b_dec.add_(shift)
    assert AuxK(2, 1.0)(_step(sae, x + shift, dead)).item() == pytest.approx(before, rel=1e-4)


def test_auxk_of_silent_latents_gives_no_gradient(dead_case):
    """Card 7, test 4b: with pre <= 0 everywhere AuxK cannot help; a resampling policy is needed for those."""
    sae, x, dead = dead_case
    with torch.no_grad():
        sae.b_enc[dead] = -10
    AuxK(2, 1.0)(_step(sae, x, dead)).backward()
    assert sae.W_enc.grad.abs().max() == 0
    assert sae.W_dec.grad is None or sae.W_dec.grad.abs().max() == 0


def test_ghost_gradients_move_dead_latents_only_and_stay_finite():
    sae = ReLUDictionary(6, 12, seed=3)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[0, 4]] = True
    with torch.no_grad():
        sae.b_enc[4] = 200.0  # exp(200) would overflow
    loss = GhostGradients()(_step(sae, x, dead))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters() if p.grad is not None)
    assert sae.W_enc.grad[:, 0].norm() > 0
    assert sae.W_enc.grad[:, ~dead].abs().max() == 0
    assert GhostGradients()(_step(sae, x)).item() == 0


def test_ghost_term_equals_the_reconstruction_term():
    """The stop-gradient weight makes every ghost term as large as the error it stands for (up to 1e-6)."""
    sae = ReLUDictionary(6, 12, seed=3)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(12, dtype=torch.bool)
    dead[2] = True
    step = _step(sae, x, dead)
    assert GhostGradients()(step).item() == pytest.approx(Reconstruction("patchsae")(step).item(), rel=1e-3)


def test_explained_variance_closed_forms():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) + 50
    assert explained_variance(x, x).item() == 1
    assert abs(explained_variance(x, x.mean(0).expand_as(x)).item()) < 1e-4
    assert explained_variance(x, x + 1).item() == pytest.approx(
        1 - 500 / (x - x.mean(0)).square().sum().item(), rel=1e-4
    )


def test_geometric_median_has_no_first_order_improvement():
    """At the median the unit vectors to the points cancel: their sum is zero."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) ** 3
    point = geometric_median(x)
    pull = torch.nn.functional.normalize(x - point, dim=1).sum(0)
    assert pull.norm() / 200 < 1e-3
    outliers = torch.cat([x, torch.full((60, 4), 1e4)])
    assert (geometric_median(outliers) - point).norm() < 3
    assert outliers.mean(0).norm() > 1000


def test_total_variance():
    x = torch.randn(1000, 9, generator=torch.Generator().manual_seed(0)) * 7
    assert total_variance(x) == pytest.approx(x.var(0, correction=0).sum().item(), rel=1e-4)


# VAEase draws noise for every token anew
@pytest.mark.parametrize("family", sorted({n for n in DICTIONARIES if DICTIONARIES.get(n).trainable} - {"vaease"}))
@pytest.mark.parametrize("scale", ["sum", "patchsae", "variance", "normalised"])
def test_no_loss_depends_on_how_large_a_batch_is(family, scale):
    """Every token twice gives the same value of every term; one that sums over the batch would double."""
    config = make_config(family, None, {"n_latents": 16, "k": 2, "dead_policy": "auxk", "loss_scale": scale})
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
    terms = []
    for batch in (x, torch.cat([x, x])):
        sae = DICTIONARIES.get(family)(8, 16, seed=1, **constructor_arguments(config))
        sae.prepare(x)
        trace = sae.trace(batch)
        step = Step(sae, batch, trace.pre, trace.z, trace.xhat, torch.arange(16) < 4, trace.extras)
        made = [OBJECTIVES.get(name).make(config, Start(8, 8.0)) for name in objective_names(config)]
        terms.append([term(step).item() for term in made])
    assert terms[1] == pytest.approx(terms[0], rel=1e-5)
    assert len(terms[0]) > 1


def test_absolute_error_and_what_was_not_chosen_by_hand():
    """USAE: mean absolute error, and the stronger half of the unchosen latents against the residual."""
    sae = TopKDictionary(2, 4, k=1)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, -1.0]])
    x, pre = torch.tensor([[3.0, 2.0]]), torch.tensor([[3.0, 1.0, 0.5, 0.2]])
    z = sae.activate(pre)
    step = Step(sae, x, pre, z, z @ sae.W_dec, torch.zeros(4, dtype=torch.bool))
    assert Reconstruction("absolute")(step).item() == pytest.approx(1.0)  # (0 + 2) / 2
    # 1.0 of the second and .5 of the third predict (.3, 1.4) of (0, 2)
    assert Unselected(0.1)(step).item() == pytest.approx(0.1 * (0.3 + 0.6) / 2)
