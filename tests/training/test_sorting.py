"""Renumbering latents: the function, and the steps that follow, stay what they were."""

import copy

import pytest
import torch

from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.gated import GatedDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.training import train
from vlsae.training.run import Run
from vlsae.training.sorting import sort_latents

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


def _stepped(sae):
    """An optimiser with moments of its own for every latent."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    _step(sae, optimizer)
    return optimizer


def _step(sae, optimizer):
    optimizer.zero_grad()
    trace = sae.trace(X)
    ((trace.xhat - X).square().sum() + trace.z.sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("make", [lambda: ReLUDictionary(8, 12, seed=1), lambda: BatchTopKDictionary(8, 12, k=3)])
def test_sorting_leaves_the_function_and_the_next_steps_unchanged(make):
    """Card 22: codes are the same in another order, reconstructions equal, and so they are three steps later."""
    plain = make()
    optimizer = _stepped(plain)
    sorted_one = copy.deepcopy(plain)
    other = torch.optim.Adam(sorted_one.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    order = sort_latents(sorted_one, plain.encode(X), other)
    assert not torch.equal(order, torch.arange(12))
    energy = sorted_one.encode(X).square().mean(0)
    assert (energy.diff() <= 1e-6).all()
    for _ in range(4):
        assert torch.allclose(sorted_one.encode(X), plain.encode(X)[:, order], atol=1e-5)
        assert torch.allclose(sorted_one(X), plain(X), atol=1e-5)
        _step(plain, optimizer)
        _step(sorted_one, other)


def test_a_sorted_run_resumes_exactly(tmp_path, monkeypatch):
    options = {"n_latents": 12, "random_prefixes": 3, "sort_latents": True, "objectives": "nested_dictionary,l1"}
    options |= {"steps": 12, "batch_size": 20, "checkpoint_every": 5, "progress": False, "dead_after_tokens": 60}
    whole = train(X, "relu", **options)
    finish = Run.finish_step

    def killed(self, *args):
        if self.step == 8:
            raise KeyboardInterrupt
        return finish(self, *args)

    monkeypatch.setattr(Run, "finish_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(X, "relu", out=tmp_path, **options)
    monkeypatch.setattr(Run, "finish_step", finish)
    assert torch.equal(train(X, "relu", out=tmp_path, **options).atoms, whole.atoms)


def test_what_cannot_be_sorted_is_refused():
    sae = GatedDictionary(8, 12)
    with pytest.raises(ValueError, match="'gated' cannot be sorted: it also has b_mag"):
        sort_latents(sae, sae.encode(X), torch.optim.Adam(sae.parameters()))
    with pytest.raises(ValueError, match="engine='fused' cannot train 'nested_dictionary'"):
        train(X, "nested_dictionary", n_latents=12, k=2, steps=1, sort_latents=True, engine="fused", progress=False)
