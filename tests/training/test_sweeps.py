"""Every run of a sweep is the run it would have been alone."""

import pytest
import torch

from vlsae.training import sweeps, train
from vlsae.training.run import Run
from vlsae.training.sweeps import grid, stacked_traces, sweep
from vlsae.world import planted

X = planted(12, 20, 2).sample(900)[0]
SHARED = {"steps": 30, "batch_size": 64, "progress": False, "data_seed": 5, "dead_after_tokens": 500, "log_every": 10}
RUNS = [
    {"family": "topk", "seed": 0, "k": 2, "n_latents": 20, "lr": 1e-3},
    {"family": "topk", "seed": 1, "k": 2, "n_latents": 20, "lr": 1e-3},
    {"family": "topk", "seed": 0, "k": 3, "n_latents": 20, "lr": 3e-3},
    {"family": "relu", "seed": 0, "l1": 0.2, "n_latents": 20, "lr": 1e-3},
    {"family": "topk", "seed": 0, "k": 2, "n_latents": 28, "lr": 1e-3, "input_transform": "sqrt_d"},
]


def test_each_run_equals_its_separate_training(monkeypatch):
    """Seeds, k, learning rates, widths, families and transforms; batched products differ by rounding only."""
    sizes = []
    monkeypatch.setattr(sweeps, "stacked_traces", lambda saes, x: sizes.append(len(saes)) or stacked_traces(saes, x))
    together = sweep(X, RUNS, **SHARED)
    assert set(sizes) == {4}  # the four of 20 latents in one product, the wider one beside them
    for options, sae in zip(RUNS, together, strict=True):
        alone = train(X, **SHARED, **options)
        for name, value in alone.state_dict().items():
            assert torch.allclose(value, sae.state_dict()[name], atol=1e-5), (options, name)
        assert sae.metadata["recipe"] == alone.metadata["recipe"]


def test_runs_with_different_seeds_differ():
    a, b = sweep(X, grid(seed=[0, 1]), n_latents=20, k=2, **SHARED)
    assert not torch.allclose(a.atoms, b.atoms, atol=0.1)


def test_an_interrupted_sweep_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Killed while the second run was stepping: the first is a checkpoint ahead."""
    options = {**SHARED, "n_latents": 20, "checkpoint_every": 7}
    whole = sweep(X, grid(k=[2, 3]), **options, out=tmp_path / "whole")
    update = Run.update

    def killed(self):
        if self.step == 13 and self.config.k == 3:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Run, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(X, grid(k=[2, 3]), **options, out=tmp_path / "parts")
    monkeypatch.setattr(Run, "update", update)
    steps = [torch.load(tmp_path / "parts" / f"k={k}" / "checkpoint.pt")["step"] for k in (2, 3)]
    assert steps == [14, 7]
    parts = sweep(X, grid(k=[2, 3]), **options, out=tmp_path / "parts")
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.atoms, b.atoms, atol=1e-5)
    assert (tmp_path / "parts" / "k=2" / "cfg.json").exists()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "There are no runs"),
        ([{"k": 1}, {"k": 1}], "'k=1' is there twice"),
        ([{"steps": 3}, {"steps": 4}], "steps must be the same for all"),
    ],
)
def test_impossible_sweeps(runs, message):
    with pytest.raises(ValueError, match=message):
        sweep(X, runs, n_latents=20, k=2, progress=False)
