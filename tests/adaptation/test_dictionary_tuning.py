"""A model adapted to a dictionary: the closed form of a linear layer, nothing to do for the identity, a closing gap."""

import pytest
import torch
import torch.nn.functional as F

from vlsae.adaptation.dictionary_tuning import adapt_to_dictionary, match_loss
from vlsae.adaptation.lora import LoRA
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.world import scenes

SITE = "vision.-2.resid_post"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_training_a_linear_layer_reaches_the_best_update_of_its_rank(rank):
    """`W* = W S P (P S P)^+`; the excess loss of rank r is the sum of the squared singular values that it drops."""
    g = torch.Generator().manual_seed(0)
    W, root = (torch.randn(5, 6, generator=g, dtype=torch.float64), torch.randn(6, 6, generator=g, dtype=torch.float64))
    basis = torch.linalg.qr(torch.randn(6, 4, generator=g, dtype=torch.float64)).Q
    P, S = basis @ basis.T, root @ root.T / 6
    values, axes = torch.linalg.eigh(P @ S @ P)
    half = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
    best = W @ S @ P @ torch.linalg.pinv(P @ S @ P, rtol=1e-10)
    dropped = torch.linalg.svdvals((best - W) @ half)[rank:].square().sum()
    lora = LoRA((5, 6), rank, 1.0, generator=g).double()
    excess = lambda: ((lora(W) - best) @ half).square().sum()  # noqa: E731
    full = lambda M: ((W - M @ P) @ S @ (W - M @ P).T).trace()  # noqa: E731
    optimizer = torch.optim.LBFGS(lora.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = full(lora(W))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(excess(), full(lora(W)) - full(best), atol=1e-8)
    assert torch.allclose(excess(), dropped, atol=1e-6)


@pytest.mark.parametrize("objective", ["zeroshot_kl", "embedding_mse"])
def test_equal_embeddings_have_no_loss_and_no_gradient(objective):
    g = torch.Generator().manual_seed(1)
    x, classes = (F.normalize(torch.randn(n, 8, generator=g, dtype=torch.float64), dim=1) for n in (3, 4))
    student = x.clone().requires_grad_()
    loss = match_loss(student, x, objective, classes, 100.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-12


@pytest.mark.slow
def test_the_gap_of_a_poor_dictionary_closes_and_more_with_rank(tiny):
    drawn = scenes(4, seed=6)
    poor = ProjectionDictionary.pca(tiny.tokens(drawn, SITE).flatten(0, 1), k=2)
    gaps = [adapt_to_dictionary(tiny, poor, drawn, SITE, objective="embedding_mse", rank=rank, alpha=rank, steps=15,
                                lr=2e-3, progress=False).gap for rank in (1, 8)]  # fmt: skip
    assert 0 < gaps[0] < gaps[1] <= 1


def test_mistakes_are_explained(tiny):
    d = tiny.blocks("vision")[0].ln_1.normalized_shape[0]
    whole = ProjectionDictionary(d, d, k=d)
    with pytest.raises(ValueError, match="with class names"):
        adapt_to_dictionary(tiny, whole, scenes(1), SITE)
    with pytest.raises(ValueError, match="No block of the vision tower"):
        adapt_to_dictionary(tiny, whole, scenes(1), "vision.-1.resid_post", objective="embedding_mse")


def test_an_identity_dictionary_leaves_nothing_to_learn(tiny):
    d = tiny.blocks("vision")[0].ln_1.normalized_shape[0]
    found = adapt_to_dictionary(tiny, ProjectionDictionary(d, d, k=d), scenes(1), SITE, objective="embedding_mse",
                                rank=1, steps=0, progress=False)  # fmt: skip
    assert found.spliced < 1e-8  # an orthonormal basis in float32, squared
