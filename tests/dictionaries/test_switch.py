"""Switch dictionaries: grouped execution, the balance of experts, and planted clusters."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch.utils.flop_counter import FlopCounterMode

from vlsae.dictionaries.switch import SwitchDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics.matching import mmcs
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.balance import Balance

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


def test_one_expert_is_topk_without_encoder_bias():
    """Card 9, test 1: outputs and gradients; the probability of a single expert is 1."""
    switch, topk = SwitchDictionary(8, 20, k=3, experts=1, seed=1), TopKDictionary(8, 20, k=3, seed=1)
    topk.b_enc.requires_grad_(False)
    grads = []
    for sae in (switch, topk):
        trace = sae.trace(X)
        (trace.xhat - X).square().sum().backward()
        grads.append((trace.z, trace.xhat, sae.W_enc.grad, sae.W_dec.grad, sae.b_dec.grad))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_grouped_execution_is_dense_masking():
    """Card 9, test 2: all experts computed and all but the chosen one masked gives the same numbers."""
    sae = SwitchDictionary(8, 24, k=2, experts=4, seed=3)
    p = sae.route(X)
    probability, chosen = p.max(1)
    pre = torch.relu((X - sae.b_dec) @ sae.W_enc)
    mask = F.one_hot(chosen, 4).repeat_interleave(6, dim=1)
    values, order = (pre * mask).topk(2, dim=1)
    dense = torch.zeros_like(pre).scatter(1, order, values) * probability[:, None]
    assert len(chosen.unique()) > 1
    assert torch.allclose(sae.encode(X), dense, atol=1e-6)
    trace = sae.trace(X)
    assert torch.allclose(trace.z, dense, atol=1e-6)
    assert torch.allclose(trace.xhat, sae.decode(dense), atol=1e-5)


def _balance(share, probability):
    return Balance(1.0)(Step(None, None, None, None, None, None, {"share": share, "probability": probability}))


def test_balance_by_hand():
    """Card 9, test 3: 1 when uniform, E at collapse, below 1 where shares and probabilities oppose each other."""
    uniform, collapsed = torch.full((4,), 0.25), torch.tensor([1.0, 0, 0, 0])
    assert _balance(uniform, uniform).item() == pytest.approx(1)
    assert _balance(collapsed, collapsed).item() == pytest.approx(4)
    assert _balance(torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.6])) < 1
    share, probability = uniform.clone().requires_grad_(), uniform.clone().requires_grad_()
    _balance(share, probability).backward()
    assert share.grad is None
    assert torch.allclose(probability.grad, 4 * uniform)


def test_one_vector_trains_its_expert_alone():
    """Card 9, test 4."""
    sae = SwitchDictionary(8, 24, k=2, experts=4, seed=3)
    (sae.trace(X[:1]).xhat - X[:1]).square().sum().backward()
    expert = int(sae.route(X[:1]).argmax())
    touched = sae.W_dec.grad.abs().sum(1).nonzero()[:, 0]
    assert len(touched)
    assert set((touched // 6).tolist()) == {expert}
    assert sae.W_enc.grad[:, [i for i in range(24) if i // 6 != expert]].abs().max() == 0


def _clusters():
    """Three groups of data, each sparse over 12 atoms of a subspace of its own."""
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
    atoms, parts = [], []
    for g in range(3):
        own = torch.randn(12, 8, generator=generator)
        own[:, 0] = own[:, 0].abs() + 1.5  # a cluster lies on one side, so that a linear router can tell it
        own = F.normalize(own, dim=1) @ basis[8 * g : 8 * g + 8]
        active = torch.rand(6000, 12, generator=generator).argsort(1) < 2
        parts.append((active * (0.5 + torch.rand(6000, 12, generator=generator))) @ own)
        atoms.append(own)
    return atoms, torch.cat(parts), torch.arange(3).repeat_interleave(6000)


def test_experts_find_planted_clusters():
    """Card 9, test 5: router and cluster agree (adjusted Rand index at least .9), and each expert has its atoms.

    The router's start matters: from seed 0 two experts share a cluster, with an index of .5 at any balance.
    """
    atoms, x, label = _clusters()
    options = {"n_latents": 48, "k": 2, "experts": 3, "steps": 1500, "batch_size": 512, "lr": 3e-3, "progress": False}
    sae = train(x, "switch", balance=0.01, seed=1, **options)
    chosen = sae.route(x).argmax(1)
    assert adjusted_rand_score(label, chosen) >= 0.9
    for g in range(3):
        expert = int(chosen[label == g].mode().values)
        assert mmcs(atoms[g], sae.atoms[16 * expert : 16 * expert + 16]) >= 0.9


def test_only_the_balance_ends_a_collapse(monkeypatch):
    """Card 9, test 5: a router that sends everything to one expert does so for ever without the term.

    With it all three experts have their 6,000 vectors (measured: 6,000 each; .01 is enough).
    """
    start = SwitchDictionary.prepare

    def collapsed(self, sample):
        start(self, sample)
        mean = F.normalize(sample.mean(0), dim=0)
        with torch.no_grad():
            self.router.mul_(0.1)[:, 0].add_(2 * mean)
            self.b_router.sub_(3 * mean)

    monkeypatch.setattr(SwitchDictionary, "prepare", collapsed)
    _, x, _ = _clusters()
    options = {"n_latents": 48, "k": 2, "experts": 3, "steps": 600, "batch_size": 512, "lr": 3e-3, "progress": False}
    shares = [
        torch.bincount(train(x, "switch", balance=balance, seed=1, **options).route(x).argmax(1), minlength=3)
        for balance in (0.0, 0.01)
    ]
    assert shares[0].tolist() == [18_000, 0, 0]
    assert shares[1].min() > 5400


def test_operations_are_those_of_the_matrix_products():
    """Card 9, test 6: router 2dE, one expert 2dM, decoding 2kd; the encoder is 1/E of a dense one.

    Torch counts the products that encoding really makes: 2dE + 2dM a vector, whichever experts the vectors go to.
    """
    sae, dense = SwitchDictionary(8, 24, k=2, experts=4), TopKDictionary(8, 24, k=2)
    assert sae.flops_per_token() == 2 * 8 * 4 + 2 * 8 * 6 + 2 * 2 * 8
    counted = []
    for dictionary in (sae, dense):
        with FlopCounterMode(display=False) as counter:
            dictionary.encode(X)
        counted.append(counter.get_total_flops() / len(X))
    assert len(sae.route(X).argmax(1).unique()) > 1
    assert counted == [2 * 8 * 4 + 2 * 8 * 6, 2 * 8 * 24]
    assert 4 * (counted[0] - 2 * 8 * 4) == counted[1]


@pytest.mark.parametrize(("experts", "k", "message"), [(5, 1, "experts=5 must divide"), (4, 7, "k=7 must lie")])
def test_impossible_settings(experts, k, message):
    with pytest.raises(ValueError, match=message):
        SwitchDictionary(8, 24, k=k, experts=experts)
