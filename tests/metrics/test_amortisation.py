"""What encoders lose against optimised codes: bounds, exact recovery, and the lasso."""

import pytest
import torch
from scipy.linalg import hadamard

from vlsae import infer
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics.amortisation import amortisation_gap, worst_case_error
from vlsae.metrics.matching import mcc
from vlsae.splice.inference import lasso_objective
from vlsae.training import train
from vlsae.world import planted


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _adversary(atoms, steps=400):
    """An encoder trained on the worst-case error itself, from the inverse."""
    W, b = torch.linalg.pinv(atoms).requires_grad_(), torch.zeros(len(atoms), requires_grad=True)
    eye = torch.eye(len(atoms))
    i, j = torch.combinations(torch.arange(len(atoms))).T
    sources = torch.cat([eye, 2 * eye, eye[i] + eye[j]])
    optimizer = torch.optim.Adam([W, b], lr=3e-3)
    for _ in range(steps):
        error = (torch.relu(sources @ atoms @ W + b) - sources).abs().max()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return W.detach(), b.detach()


@pytest.mark.parametrize("kind", ["random", "trained", "inverse", "adversarial"])
def test_no_encoder_beats_the_worst_case_bound(kind):
    """Card 30: `eps >= sqrt(N - M) / (2 N)` for encoders of any kind, here 24 sources in 12 dimensions.

    The adversary lowers the inverse's error, 1.35, to .66 and stays above .072.
    """
    truth = planted(12, 24, 2, seed=1)
    if kind == "trained":
        sae = train(truth.sample(20_000)[0], "relu", n_latents=24, l1=0.1, steps=400, lr=3e-3, progress=False)
        W, b = sae.W_enc.detach() @ (truth.atoms @ sae.W_enc.detach()).pinverse() @ torch.eye(24), sae.b_enc.detach()
    elif kind == "inverse":
        W, b = torch.linalg.pinv(truth.atoms), torch.zeros(24)
    elif kind == "adversarial":
        W, b = _adversary(truth.atoms)
        assert worst_case_error(W, b, truth.atoms) < worst_case_error(*_adversary(truth.atoms, 0), truth.atoms)
    else:
        W, b = torch.randn(12, 24, generator=_generator(3)) / 5, torch.zeros(24)
    error, bound = worst_case_error(W, b, truth.atoms)
    assert bound == pytest.approx(12**0.5 / 48)
    assert error >= bound
    assert worst_case_error(torch.eye(6), torch.zeros(6), torch.eye(6)) == (0.0, 0.0)


def test_optimisation_recovers_codes_that_the_encoder_cannot():
    """Below coherence 1 / (2 K - 1) pursuit is exact (Tropp 2004); the encoder's codes are not."""
    D = torch.cat([torch.eye(64), torch.from_numpy(hadamard(64) / 8.0).float()])
    z = torch.rand(600, 128, generator=_generator(4)).argsort(1) < 4
    z = z * (1 + torch.rand(600, 128, generator=_generator(5)))
    sae = TopKDictionary(64, 128, k=4)
    with torch.no_grad():
        sae.W_dec.copy_(D)
        sae.W_enc.copy_(D.T)
    x = z @ D
    assert torch.allclose(infer(sae, x, "omp", k=4), z, atol=1e-4)
    assert torch.allclose(infer(sae, x, "lasso", l1=1e-3), z, atol=5e-3)
    assert (sae.encode(x) - z).abs().max() > 0.1
    assert mcc(infer(sae, x, "omp", k=4), z) > 0.999
    gap = amortisation_gap(sae, x)
    assert gap.optimised < 1e-6
    assert gap.gap > 0.01
    assert gap.l0 == pytest.approx(4)


def test_an_orthonormal_dictionary_has_no_gap():
    """The encoder is the pursuit, and the lasso the soft threshold in closed form."""
    sae = TopKDictionary(8, 8, k=3)
    Q = ProjectionDictionary(8, 8, k=8, seed=2)
    with torch.no_grad():
        sae.W_dec.copy_(Q.W_dec)
        sae.W_enc.copy_(Q.W_enc)
        sae.b_dec.fill_(0.3)
    x = torch.randn(50, 8, generator=_generator(6))
    assert amortisation_gap(sae, x).gap == pytest.approx(0, abs=1e-5)
    soft = torch.relu((x - 0.3) @ Q.W_enc - 0.2)
    assert torch.allclose(infer(sae, x, "lasso", l1=0.4), soft, atol=1e-4)
    assert torch.allclose(infer(sae, x, "refine", l1=0.4), soft, atol=1e-4)


def test_refinement_never_raises_the_objective_and_reaches_the_lasso():
    sae = TopKDictionary(16, 40, k=5, seed=3)
    x = torch.randn(60, 16, generator=_generator(7))
    target = x - sae.b_dec.detach()

    def level(z):
        return lasso_objective(target, z, sae.atoms, 0.2)

    previous = level(sae.encode(x).detach())
    for steps in (1, 2, 5, 20, 300):
        now = level(infer(sae, x, "refine", l1=0.2, steps=steps))
        assert (now <= previous + 1e-5).all()
        previous = now
    best = level(infer(sae, x, "lasso", l1=0.2))
    assert torch.allclose(previous, best, rtol=1e-3)
    z = infer(sae, x, "lasso", l1=0.2)
    slope = 0.2 - 2 * (target - z @ sae.atoms) @ sae.atoms.T  # zero where active, at least zero elsewhere
    assert slope.min() > -5e-3
    assert slope[z > 0].abs().max() < 5e-3


def test_inference_keeps_shapes_transforms_and_numbers():
    sae = TopKDictionary(16, 40, k=5, seed=3)
    x = 3 + torch.randn(4, 5, 16, generator=_generator(8))
    sae.transform = type(sae.transform).fit(x.flatten(0, 1), "centre_sqrt_d")
    for method, options in (("omp", {"k": 3}), ("gradient_pursuit", {"k": 3}), ("lasso", {"k": 3}), ("encoder", {})):
        z = infer(sae, x, method, **options)
        assert z.shape == (4, 5, 40)
        assert ((z > 0).sum(-1) <= (3 if options else 5)).all()
    assert (x - sae.decode(infer(sae, x, "omp", k=8), like=x)).square().mean() < (x - sae(x)).square().mean()
    for method, options, message in (
        ("best", {}, "method='best' is unknown"),
        ("omp", {}, "'omp' needs k"),
        ("lasso", {}, "needs a penalty l1 or a number k"),
        ("refine", {}, "needs a penalty l1"),
    ):
        with pytest.raises(ValueError, match=message):
            infer(sae, x, method, **options)
