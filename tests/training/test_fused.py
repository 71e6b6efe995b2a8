"""The fused engine against autograd: the same weights after 20 steps, whatever the family and recipe."""

import pytest
import torch

from vlsae.dictionaries import selection_tensors
from vlsae.dictionaries.selection import Products
from vlsae.training import TrainingDiverged, loop, train
from vlsae.training.fused import run

X = torch.randn(4000, 24, generator=torch.Generator().manual_seed(0)) + 0.3
BASE = {"n_latents": 200, "steps": 20, "batch_size": 160, "lr": 1e-3, "warmup_steps": 4, "progress": False}
RECIPES = {
    "topk": {"arch": "topk", "k": 5},
    "topk, dead": {"arch": "topk", "k": 3, "dead_after_tokens": 320, "aux_k": 16},
    "topk, few aux": {"arch": "topk", "k": 3, "dead_after_tokens": 320, "aux_k": 500, "aux_coefficient": 1.0},
    "topk, clipped": {"arch": "topk", "k": 5, "clip_gradient": 0.05, "weight_decay": 0.1},
    "topk, no bias": {"arch": "topk", "k": 5, "b_dec_init": "none"},
    "topk, patchsae": {"arch": "topk", "k": 5, "loss_scale": "patchsae", "lr": 1e-2},
    "topk, normalised": {"arch": "topk", "k": 5, "loss_scale": "normalised"},
    "topk, variance": {"arch": "topk", "k": 5, "loss_scale": "variance", "input_transform": "layer_norm"},
    "abs_topk": {"arch": "abs_topk", "k": 5, "dead_after_tokens": 320},
    "batch_topk": {"arch": "batch_topk", "k": 5, "dead_after_tokens": 320, "clip_gradient": 1.0},
    "nested": {"arch": "nested_dictionary", "k": 5, "prefixes": [10, 70, 200], "dead_after_tokens": 320},
    "nested, sizes": {"arch": "nested_dictionary", "k": 5, "prefix_weights": "size", "random_prefixes": 4},
    "relu": {"arch": "relu", "l1": 0.3, "dead_policy": "none"},
    "relu, steered": {"arch": "relu", "l1": 0.3, "dead_policy": "auxk", "target_l0": 20, "l1_relative": True},
}


@pytest.fixture(params=["compiled", "tensors"])
def maths(request, monkeypatch):
    """Both kinds of maths: compiled for the processor, and torch operations for every other device."""
    monkeypatch.setattr(run, "DENSE", 1.0)  # at such a width, ReLU dictionaries would be left to autograd
    if request.param == "tensors":
        monkeypatch.setattr(loop, "CompiledRun", run.SparseRun)
        monkeypatch.setattr(Products, "finder", selection_tensors)


@pytest.mark.parametrize("name", RECIPES)
def test_it_makes_the_steps_of_autograd(name, maths):
    options = {**BASE, **RECIPES[name]}
    slow, quick = (train(X, engine=engine, **options) for engine in ("torch", "fused"))
    for key, weight in slow.state_dict().items():
        assert (weight - quick.state_dict()[key]).abs().max() < 1e-5, key
    moved = (slow.W_dec - train(X, engine="torch", **{**options, "steps": 1}).W_dec).abs().max()
    assert moved > 1e-3  # the comparison would be worthless if nothing moved


@pytest.mark.parametrize("engines", [("torch", "fused"), ("fused", "torch"), ("fused", "fused")])
def test_either_engine_continues_the_other(engines, tmp_path, maths):
    options = {**BASE, "arch": "topk", "k": 4, "decay": 0.0, "dead_after_tokens": 320, "checkpoint_every": 10}

    class Stop(Exception):
        pass

    class Half:
        """The data, until a step."""

        def __init__(self, last):
            from vlsae.activations.memory import TensorActivations

            self.inner, self.last = TensorActivations(X), last
            self.d, self.fingerprint = self.inner.d, self.inner.fingerprint

        def shuffled(self, *args):
            for number, item in enumerate(self.inner.shuffled(*args)):
                if number == self.last:
                    raise Stop
                yield item

    with pytest.raises(Stop):
        train(Half(14), engine=engines[0], out=tmp_path, **options)
    halves = train(Half(-1), engine=engines[1], out=tmp_path, **options)
    whole = train(Half(-1), engine="torch", **options)
    for key, weight in whole.state_dict().items():
        assert (weight - halves.state_dict()[key]).abs().max() < 1e-5, key


def test_relu_is_left_to_autograd_while_it_is_dense(monkeypatch):
    steps = []
    monkeypatch.setattr(run.SparseRun, "loss", lambda *args: steps.append(1) or run.Run.loss(*args))
    options = {**BASE, "arch": "relu", "l1": 0.3, "dead_policy": "none"}
    quick = train(X, engine="fused", **options)
    assert len(steps) == 20  # half of all latents are active at the start, and 20 steps change little
    slow = train(X, engine="torch", **options)
    assert torch.equal(quick.W_dec, slow.W_dec)


def test_batch_topk_finds_its_codes_where_the_last_threshold_is_far_too_high(monkeypatch, maths):
    """A threshold of another scale costs further looks, never codes; and not one at all positive pre-activations."""
    bounds, original = [], run.positive
    monkeypatch.setattr(
        run, "positive", lambda p, bound, *args, **kw: bounds.append(bound) or original(p, bound, *args, **kw)
    )
    monkeypatch.setattr(run, "LIKELY", 1000.0)
    options = {**BASE, "arch": "batch_topk", "k": 5}
    slow, quick = (train(X, engine=engine, **options) for engine in ("torch", "fused"))
    assert (slow.W_dec - quick.W_dec).abs().max() < 1e-5
    assert max(bounds) > 100 and min(bounds) > 0


def test_data_without_variance_can_be_trained_on():
    assert torch.isfinite(train(torch.ones(64, 8), "topk", n_latents=16, k=2, steps=3, progress=False).W_dec).all()


def test_weights_that_are_no_numbers_stop_the_run_where_it_would_be_saved(tmp_path, monkeypatch):
    original = run.SparseRun._tell

    def spoil(self, *args):
        self.dictionary.b_enc.data[3] = float("nan")
        return original(self, *args)

    monkeypatch.setattr(run.SparseRun, "_tell", spoil)
    with pytest.raises(TrainingDiverged, match="Weights are not finite after step 5; no checkpoint was written yet"):
        train(X, "topk", out=tmp_path, k=5, checkpoint_every=5, log_every=5, **BASE)


def test_what_cannot_be_fused_is_refused_and_auto_falls_back():
    with pytest.raises(ValueError, match="engine='fused' cannot train 'gated'"):
        train(X, "gated", engine="fused", **BASE)
    with pytest.raises(ValueError, match="engine='quick' is unknown"):
        train(X, "topk", engine="quick", **BASE)
    assert train(X, "gated", **{**BASE, "steps": 1}).family == "gated"
