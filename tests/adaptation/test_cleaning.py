"""Cleaning finds the planted concepts; effects of nodes are those of ablations where they must be."""

import pytest
import torch
import torch.nn.functional as F

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.cleaning import clean_vector, decompose, displacement, injector
from vlsae.adaptation.methods.vpt import VPT
from vlsae.adaptation.node_effects import node_effects
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.latent_effects import latent_effects
from vlsae.world import scenes

SITE = "vision.-2.resid_post"
SUPPORT = [3, 11, 17]


@pytest.fixture(scope="module")
def planted():
    """24 atoms in the first 16 of 20 dimensions; the task reads these alone, so the rest of v* has no effect."""
    g = torch.Generator().manual_seed(0)
    sae = ReLUDictionary(20, 24)
    atoms = F.normalize(torch.cat([torch.randn(24, 16, generator=g), torch.zeros(24, 4)], 1), dim=1)
    sae.W_dec.data, sae.W_enc.data = atoms, atoms.T.clone()
    good = torch.tensor([2.0, 1.5, 1.0]) @ atoms[SUPPORT]
    beside = torch.cat([torch.zeros(16), torch.randn(4, generator=g)])
    task = torch.randn(40, 16, generator=g) / 40**0.5
    goal = task @ good[:16]
    return sae, good + beside, lambda vector: task @ vector[:16], lambda y: (y - goal).square().sum()


@pytest.mark.parametrize("init", ["encoder", "nnls"])
def test_cleaning_returns_the_planted_support(planted, init):
    sae, v, inject, loss_fn = planted
    cleaned = clean_vector(v, sae, inject, loss_fn, l1=0.02, init=init, lr=0.02, steps=2000)
    assert cleaned.active == SUPPORT
    rough = decompose(v, sae, inject, loss_fn, "encoder")
    assert len(rough.active) > 3
    assert cleaned.loss <= rough.loss
    assert cleaned.loss_curve[0] >= min(cleaned.loss_curve)
    # at the optimum of a quadratic with penalty l1, codes are short by (l1/2) G^-1 1 with G the task's Gram matrix
    assert torch.allclose(cleaned.theta[SUPPORT], torch.tensor([2.0, 1.5, 1.0]), atol=0.1)


def test_without_penalty_the_loss_is_that_of_the_vector_or_less(planted):
    """The task ignores the orthogonal part of the vector, so that the atoms alone can do as well as all of it."""
    sae, v, inject, _ = planted
    classes = torch.arange(2)
    loss_fn = lambda y: F.cross_entropy(torch.stack([y[:2], y[2:4]]), classes)  # noqa: E731
    raw = decompose(v, sae, inject, loss_fn, "raw")
    assert clean_vector(v, sae, inject, loss_fn, l1=0.0, init="nnls", lr=0.02, steps=200).loss <= raw.loss
    assert decompose(v, sae, inject, loss_fn, "pursuit", k=3).loss == pytest.approx(raw.loss, abs=0.1)
    assert len(decompose(v, sae, inject, loss_fn, "pursuit", k=2).active) <= 2


def test_mistakes_are_explained(planted):
    sae, v, inject, loss_fn = planted
    with pytest.raises(ValueError, match="use 'encoder' or 'nnls'"):
        clean_vector(v, sae, inject, loss_fn, init="random")
    with pytest.raises(ValueError, match="give one vector"):
        clean_vector(v[:5], sae, inject, loss_fn)
    with pytest.raises(ValueError, match="l1 >= 0"):
        clean_vector(v, sae, inject, loss_fn, l1=-1.0)
    with pytest.raises(FloatingPointError, match="lower lr"):
        clean_vector(v, sae, inject, lambda y: y.sum() * float("nan"))


def test_displacement_and_injection_on_a_model(tiny):
    """Prompts in the last block move nothing before it; a vector added by hand is what the injector adds."""
    drawn, names = scenes(3, seed=2), ["cat", "dog"]
    adapted = AdaptedBackbone(tiny, VPT(tiny, n_prompts=2))
    moved = displacement(adapted, drawn, SITE, batch_size=2)
    n = len(tiny.token_roles)
    patches = [i for i, role in enumerate(tiny.token_roles) if role == "patch"]
    by_hand = (adapted.tokens(drawn, SITE)[:, :n] - tiny.tokens(drawn, SITE))[:, patches].mean((0, 1))
    assert moved.norm() > 0
    assert torch.allclose(moved, by_hand, atol=1e-5)
    inject = injector(tiny, drawn, tiny.head(names), SITE)
    with torch.no_grad():
        assert torch.allclose(inject(0 * moved), tiny.head(names)(tiny.encode_image(drawn)), atol=1e-4)
        place = torch.zeros(n, 1)
        place[patches] = 1
        with tiny.edit(SITE, lambda tokens: tokens + place * moved):
            wanted = tiny.head(names)(tiny.encode_image(drawn))
        assert torch.allclose(inject(moved), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="No token has a role"):
        displacement(adapted, drawn, SITE, roles=("prompt",))


def test_node_effects_of_a_linear_head_are_ablations_and_add_up(planted):
    sae = planted[0]
    g = torch.Generator().manual_seed(1)
    sae.b_dec.data = torch.randn(20, generator=g)
    x, w = torch.randn(6, 20, generator=g), torch.randn(20, generator=g)
    found = node_effects(sae, x, w)
    assert torch.allclose(found.latents, -latent_effects(sae, x, lambda h: h @ w), atol=1e-4)
    whole = x @ w - sae.decode(torch.zeros(24)).detach() @ w
    assert torch.allclose(found.latents.sum(1) + found.error, whole, atol=1e-4)


def test_of_a_quadratic_head_they_miss_the_second_order_term(planted):
    """`m(x) = x^T H x / 2`: ablation loses `z <d, H x> - z^2 <d, H d> / 2`, attribution its first part."""
    sae = planted[0]
    g = torch.Generator().manual_seed(2)
    x, H = torch.randn(4, 20, generator=g), torch.randn(20, 20, generator=g)
    H = H + H.T
    m = lambda h: ((h @ H) * h).sum(1) / 2  # noqa: E731
    z = sae.encode(x).detach()
    second = z.square() * torch.einsum("id,de,ie->i", sae.atoms, H, sae.atoms) / 2
    assert torch.allclose(node_effects(sae, x, m).latents - second, -latent_effects(sae, x, m), atol=1e-3)
