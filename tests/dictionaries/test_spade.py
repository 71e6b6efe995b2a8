"""SpaDE: the projection on the simplex, prototypes, and geometry no half-space can see."""

import math

import pytest
import torch

from vlsae.dictionaries.simplex import sparsemax
from vlsae.dictionaries.spade import SpaDEDictionary
from vlsae.metrics.concept_f1 import latent_concept_f1
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.locality import Locality


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    """Card 43, test 1: the conditions of Karush, Kuhn and Tucker, which one point alone fulfils."""
    v = 2 * torch.randn(500, 7, generator=_generator(), dtype=torch.float64)
    z = sparsemax(v)
    assert torch.allclose(z.sum(1), torch.ones(500, dtype=torch.float64), atol=1e-12)
    assert (z >= 0).all()
    tau = torch.where(z > 0, v - z, -torch.inf).max(1, keepdim=True).values
    assert torch.allclose(torch.where(z > 0, v - z, tau), tau.expand_as(v), atol=1e-12)
    assert (v - tau)[z == 0].max() <= 1e-12
    assert torch.allclose(sparsemax(v + 3), z, atol=1e-12)
    assert torch.equal(sparsemax(torch.zeros(1, 4)), torch.full((1, 4), 0.25))


def test_sparsemax_gradient_is_that_of_finite_differences():
    v = torch.randn(20, 6, generator=_generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, (v,), eps=1e-7, atol=1e-5)


def test_one_prototype_alone_is_active_where_it_is_nearer_by_one():
    """Card 43, test 2: one-hot exactly where `scale (d2^2 - d1^2) >= 1`."""
    sae = SpaDEDictionary(3, 9, seed=1)
    x = 2 * torch.randn(2000, 3, generator=_generator(2))
    distances = torch.cdist(x, sae.W_enc.T).square().sort(dim=1).values
    margin = sae.scale * (distances[:, 1] - distances[:, 0])
    clear = (margin - 1).abs() > 1e-5
    assert torch.equal(((sae.encode(x) > 0).sum(1) == 1)[clear], (margin >= 1)[clear])


def test_locality_is_the_error_and_the_spread_of_the_active_atoms():
    """Card 43, test 3: `sum z ||x - w||^2 = ||x - z W||^2 + sum z ||w - z W||^2`."""
    sae = SpaDEDictionary(4, 12, seed=3).double()
    x = torch.randn(50, 4, generator=_generator(4), dtype=torch.float64)
    trace = sae.trace(x)
    step = Step(sae, x, trace.pre, trace.z, trace.xhat, torch.zeros(12, dtype=torch.bool))
    w, z = sae.W_enc.T, trace.z
    middle = z @ w
    spread = (z[:, :, None] * (w[None] - middle[:, None]).square()).sum((1, 2))
    expected = ((x - middle).square().sum(1) + spread).mean()
    assert Locality(1.0)(step).item() == pytest.approx(expected.item(), rel=1e-10)
    assert Locality(1.0)(step) >= (x - middle).square().sum(1).mean()


def _six_clusters(n=6000):
    """Gaussians every 60 degrees at radii 1.5 and .5: the inner three cannot be cut off by a line."""
    label = torch.randint(0, 6, (n,), generator=_generator(5))
    angle = label * math.pi / 3
    radius = torch.where(label % 2 == 0, 1.5, 0.5)
    centre = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + (2**-4.5 / 2) ** 0.5 * torch.randn(n, 2, generator=_generator(6)), label


def test_trained_latents_tell_inner_clusters_where_no_half_space_does():
    """Card 43, test 4: the best F1 of any half-space is about .61 for the inner clusters (scanned here)."""
    x, label = _six_clusters()
    labels = torch.nn.functional.one_hot(label, 6).bool()
    angles = torch.linspace(0, 2 * math.pi, 120)
    projected = x @ torch.stack([angles.cos(), angles.sin()])
    cuts = torch.linspace(-2, 2, 81)
    scores = torch.stack([latent_concept_f1((projected > cut).float(), labels).max(0).values for cut in cuts])
    ceiling = scores.max(0).values
    assert (ceiling[[0, 2, 4]] > 0.98).all()
    assert (ceiling[[1, 3, 5]] < 0.7).all()
    options = {"steps": 600, "batch_size": 512, "lr": 1e-2, "schedule": "cosine", "decay": 1.0, "progress": False}
    sae = train(x, "spade", n_latents=24, locality=0.3, clip_gradient=1.0, **options)
    best = latent_concept_f1(sae.encode(x), labels).max(0).values
    assert (best[[1, 3, 5]] > 0.75).all()


def test_prototypes_at_the_centres_are_as_good_as_the_nearest_centre():
    """Card 43, test 4: an F1 of `1 - 2 Phi(-m)`, `m` half the distance of inner centres in standard deviations: .9964.

    With 10,000 vectors a cluster its standard deviation is .0004.
    """
    x, label = _six_clusters(60_000)
    exact = SpaDEDictionary(2, 6)
    angle = torch.arange(6) * math.pi / 3
    centres = torch.tensor([1.5, 0.5]).repeat(3)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    with torch.no_grad():
        exact.W_enc.copy_(centres.T)
        exact.raw_scale.fill_(20.0)
    best = latent_concept_f1(exact.encode(x), torch.nn.functional.one_hot(label, 6).bool()).max(0).values
    m = torch.tensor(0.5 * 3**0.5 / 2 / (2**-4.5 / 2) ** 0.5)
    inner = 1 - 2 * torch.distributions.Normal(0.0, 1.0).cdf(-m).item()
    assert inner == pytest.approx(0.9964, abs=1e-4)
    assert best[[1, 3, 5]].tolist() == pytest.approx([inner] * 3, abs=0.0013)
    assert (best[[0, 2, 4]] > 0.9995).all()


def test_more_latents_are_active_where_the_concept_has_more_dimensions():
    """Card 43, test 5: intrinsic dimensions 6, 14 and 30 in R^32; TopK spends k on each alike."""
    parts = []
    for number, m in enumerate((6, 14, 30)):
        basis = torch.linalg.qr(torch.randn(32, m, generator=_generator(number)))[0]
        centre = 5 * torch.nn.functional.normalize(torch.randn(32, generator=_generator(10 + number)), dim=0)
        parts.append(centre + torch.randn(4000, m, generator=_generator(20 + number)) @ basis.T)
    x = torch.cat(parts)
    options = {"n_latents": 96, "batch_size": 512, "progress": False}
    spade = train(x, "spade", lr=2e-2, steps=1000, locality=2.0, clip_gradient=1.0, **options)
    topk = train(x, "topk", k=8, lr=3e-3, steps=300, **options)
    l0 = [(spade.encode(part) > 0).sum(1).float().mean().item() for part in parts]
    assert l0 == sorted(l0)
    assert l0[2] > 2 * l0[0]
    fixed = [(topk.encode(part) > 0).sum(1).float().mean().item() for part in parts]
    assert max(fixed) - min(fixed) < 1.0


def test_a_middle_shell_of_an_onion_has_a_latent_of_its_own():
    """Card 43, test 6: one direction at two sizes, and the ground at 0, all as frequent.

    A half-space that holds the middle holds the ground or the outer shell too: F1 at most 2/3 without noise.
    """
    label = torch.randint(0, 3, (6000,), generator=_generator(30))
    u = torch.nn.functional.normalize(torch.randn(16, generator=_generator(31)), dim=0)
    noise = 0.24 * torch.randn(6000, 16, generator=_generator(32))
    x = torch.tensor([0.0, 3.0, 7.5])[label, None] * u + noise
    options = {"n_latents": 6, "batch_size": 512, "steps": 1000, "progress": False}
    spade = train(x, "spade", lr=1e-2, locality=1.0, clip_gradient=1.0, **options)
    relu = train(x, "relu", l1=0.02, lr=3e-3, **options)
    best = [latent_concept_f1(sae.encode(x), (label == 1)[:, None]).nan_to_num().max().item() for sae in (spade, relu)]
    assert best[0] > 0.99
    assert best[1] < 0.7


def test_f1_by_hand():
    """A latent fires on 2 of 4, one of them the concept's single: F1 2 / (2 + 1)."""
    z = torch.tensor([[1.0], [0.5], [0.0], [0.0]])
    assert latent_concept_f1(z, torch.tensor([[True], [False], [False], [False]])).item() == pytest.approx(2 / 3)


def test_start_is_checked():
    with pytest.raises(ValueError, match="start='here' is unknown"):
        SpaDEDictionary(2, 4, start="here")
