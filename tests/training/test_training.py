"""Training finds planted dictionaries, keeps its constraints, and survives interruptions exactly."""

import functools
import json
import math

import numpy as np
import pytest
import torch

from vlsae.dictionaries import Dictionary, load_dictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.training import TrainConfig, TrainingDiverged, train
from vlsae.training.objectives.auxk import auxiliary_k
from vlsae.training.recipe import make_config
from vlsae.training.run import Run, learning_rate
from vlsae.world import planted


def matched_cosine(truth: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Cosine of every true atom with its partner in the best one-to-one matching."""
    from scipy.optimize import linear_sum_assignment

    cosine = truth @ torch.nn.functional.normalize(found, dim=1).T
    rows, columns = linear_sum_assignment(-cosine.numpy())
    return cosine[rows, columns]


RECIPE = {"n_latents": 64, "k": 3, "steps": 3000, "batch_size": 512, "lr": 3e-3, "dead_after_tokens": 20_000,
          "progress": False}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_topk_recovers_a_planted_dictionary(seed):
    """Card 7, test 7: with AuxK the mean matched cosine is .98 to .999 at d=32, 64 atoms, k=3; at least .97."""
    truth = planted(32, 64, 3, seed=seed)
    x, _ = truth.sample(40_000)
    sae = train(x, "topk", seed=seed, **RECIPE)
    cosine = matched_cosine(truth.atoms, sae.atoms)
    assert cosine.mean() >= 0.97
    held_out, z = truth.sample(2000, part=1)
    error = (sae(held_out) - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
    assert error < 0.1
    assert (sae.encode(held_out) > 0).sum(1).max() <= 3


def test_auxk_revives_latents_that_never_win(monkeypatch):
    """Card 7, test 4a: a quarter of the latents start with a bias at which pre > 0 happens but never enters the top k.

    The main loss gives them no gradient, so without AuxK most stay dead; with it they join (measured: 13 against 1).
    """
    from vlsae.dictionaries.topk import TopKDictionary

    start = TopKDictionary.__init__

    @functools.wraps(start)
    def handicapped(self, *args, **options):
        start(self, *args, **options)
        with torch.no_grad():
            self.b_enc[:16] = -0.8

    monkeypatch.setattr(TopKDictionary, "__init__", handicapped)
    x, _ = planted(32, 64, 3).sample(40_000)
    dead = {}
    for policy in ("auxk", "none"):
        sae = train(x, "topk", dead_policy=policy, **{**RECIPE, "steps": 1000})
        dead[policy] = int((sae.encode(x) > 0).any(0).logical_not().sum())
    assert dead["none"] >= 8
    assert dead["auxk"] <= 3


def test_relu_recovers_a_planted_dictionary():
    """ReLU with L1 in the papers' scale; shrinkage makes it less exact than TopK, far above the chance of .40."""
    truth = planted(32, 64, 3)
    x, _ = truth.sample(40_000)
    sae = train(x, "relu", n_latents=64, l1=0.15, lr=2e-3, steps=2500, batch_size=512, progress=False)
    assert matched_cosine(truth.atoms, sae.atoms).mean() >= 0.9


def test_a_scaled_run_folds_back():
    """Inputs 1,000 times larger: with sqrt_d scaling the same steps find the same dictionary in the original units."""
    truth = planted(16, 24, 2)
    x, _ = truth.sample(8000)
    options = {
        "n_latents": 24,
        "k": 2,
        "steps": 300,
        "batch_size": 256,
        "lr": 3e-3,
        "progress": False,
        "input_transform": "sqrt_d",
    }
    a, b = train(x, "topk", **options), train(1000 * x, "topk", **options)
    assert torch.allclose(a.atoms, b.atoms, atol=2e-3)
    assert torch.allclose(1000 * a(x[:50]), b(1000 * x[:50]), rtol=0.02, atol=5.0)
    before = b(1000 * x[:50])
    b.fold_transform()
    assert torch.allclose(b(1000 * x[:50]), before, rtol=1e-4, atol=0.05)


def _options(**more):
    return {"n_latents": 20, "k": 2, "steps": 40, "batch_size": 64, "checkpoint_every": 7, "log_every": 5, "progress": False,
            **more}  # fmt: skip


@pytest.mark.parametrize("family", ["topk", "relu"])
def test_killed_and_resumed_ends_in_the_same_weights(tmp_path, monkeypatch, family):
    """The data are 1.6 passes of 1,600 vectors, so the interruption also crosses a pass."""
    x, _ = planted(12, 20, 2).sample(1600)
    whole = train(x, family, out=tmp_path / "whole", **_options())
    finish = Run.finish_step
    for stop in (10, 31):

        def killed(self, *args, stop=stop):
            if self.step == stop:
                raise KeyboardInterrupt
            return finish(self, *args)

        monkeypatch.setattr(Run, "finish_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(x, family, out=tmp_path / "parts", **_options())
    monkeypatch.setattr(Run, "finish_step", finish)
    parts = train(x, family, out=tmp_path / "parts", **_options())
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    logs = [
        [json.loads(line) for line in (tmp_path / d / "train.jsonl").read_text().splitlines()]
        for d in ("whole", "parts")
    ]
    assert [row["step"] for row in logs[1]] == list(range(5, 41, 5))
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    assert torch.equal(load_dictionary(tmp_path / "parts").encode(x), whole.encode(x))


def test_another_recipe_does_not_continue_a_run(tmp_path):
    x, _ = planted(12, 20, 2).sample(200)
    train(x, "topk", out=tmp_path, **_options())
    with pytest.raises(ValueError, match="another recipe .k: 2 there, 3 now"):
        train(x, "topk", out=tmp_path, **_options(k=3))


def test_other_data_do_not_continue_a_run(tmp_path):
    x, _ = planted(12, 20, 2).sample(200)
    train(x, "topk", out=tmp_path, **_options())
    with pytest.raises(ValueError, match="holds a run on other data"):
        train(x + 1, "topk", out=tmp_path, **_options())


def test_a_log_line_cut_short_does_not_stop_a_resume(tmp_path):
    x, _ = planted(12, 20, 2).sample(200)
    train(x, "topk", out=tmp_path, **_options())
    with open(tmp_path / "train.jsonl", "a") as log:
        log.write('{"step": 4')
    train(x, "topk", out=tmp_path, **_options())
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, engine):
    x, _ = planted(12, 20, 2).sample(1600)
    batches = Run.batches

    def poisoned(self):
        for x in batches(self):
            yield x * (float("nan") if self.step == 20 else 1.0)

    monkeypatch.setattr(Run, "batches", poisoned)
    with pytest.raises(TrainingDiverged, match="The loss is nan at step 20; the last good checkpoint is in"):
        train(x, "topk", engine=engine, out=tmp_path, **_options())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 14
    assert all(torch.isfinite(v).all() for v in state["dictionary"].values())


def test_atoms_stay_unit_and_gradients_tangent(monkeypatch):
    x, _ = planted(12, 20, 2).sample(800)
    remove, seen = Dictionary.constrain_gradient, []

    def checked(sae):
        remove(sae)
        seen.append((sae.W_dec.grad * sae.W_dec).sum(1).abs().max().item())

    monkeypatch.setattr(Dictionary, "constrain_gradient", checked)
    sae = train(x, "topk", engine="torch", **_options())
    assert len(seen) == 40
    assert max(seen) < 1e-5
    assert torch.allclose(sae.atoms.norm(dim=1), torch.ones(20), atol=1e-6)


def test_learning_rate_schedule():
    config = TrainConfig(lr=1.0, steps=100, warmup_steps=10, decay=0.2)
    rates = [learning_rate(config, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_auxiliary_k():
    assert [auxiliary_k(d) for d in (2, 32, 192, 768)] == [1, 16, 128, 512]  # 96 and 384 lie between two powers


def test_presets_are_the_published_recipes():
    patchsae = make_config(None, "patchsae", {})
    assert (patchsae.l1, patchsae.lr, patchsae.warmup_steps, patchsae.loss_scale) == (8e-5, 4e-4, 500, "patchsae")
    assert patchsae.n_latents == 64 * 768
    assert patchsae.batch_size == 128 * 197
    assert patchsae.dead_after_tokens == 64 * patchsae.batch_size
    assert patchsae.steps * 128 == 2_621_440
    assert make_config(None, "topk", {"k": 8}).k == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 3}, "Unknown option 'speed'"),
        ({"preset": "magic"}, "Unknown preset 'magic'"),
        ({"family": "cube"}, "Unknown dictionary 'cube'"),
        ({"family": "projection"}, r"'projection' needs no training: make it by ProjectionDictionary.pca\(x, k\)"),
        ({"family": "kmeans"}, r"KMeansDictionary.fit\(x, n_latents\)"),
        ({"family": "nmf"}, r"NMFDictionary.fit\(x, n_latents, k\)"),
        ({"family": "feed_forward"}, r"FeedForwardKV.from_module\(block.mlp\)"),
        ({"family": "pca"}, r"'pca' needs no training: .* fit_baselines\(x, k\)\['pca'\]"),
        ({"loss_scale": "huge"}, "loss_scale='huge' is unknown"),
        ({"lr": -1.0}, "lr=-1.0 must be positive"),
        ({"k": 99, "n_latents": 8}, "k=99 must lie between 1 and n_latents=8"),
        ({"steps": 0}, "steps=0 must be at least 1"),
    ],
)
def test_impossible_recipes(options, message):
    with pytest.raises(ValueError, match=message):
        train(torch.randn(50, 4), progress=False, **options)


def test_bad_data():
    with pytest.raises(ValueError, match="NaN or infinite"):
        train(torch.full((4, 4), math.nan), "topk", progress=False)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        train(torch.zeros(4), "topk", progress=False)


def test_store_facts_reach_the_dictionary(store, tmp_path):
    sae = train(store, "topk", n_latents=16, k=2, steps=3, batch_size=64, out=tmp_path, progress=False)
    facts = load_dictionary(tmp_path).metadata
    assert facts["site"] == "vision.4.resid_post"
    assert facts["model"] == "tiny"
    assert facts["weight_hash"] == store.config.weight_hash
    assert facts["recipe"]["k"] == 2
    assert facts["n_tokens_seen"] == 3 * 64
    assert sae.d == 192
    with pytest.raises(ValueError, match="hold no tokens to train on"):
        train(store, "topk", n_latents=16, k=2, select=np.zeros((24, 64), bool), progress=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_dictionary_starts_at_the_planted_truth(seed):
    """Equal seeds of data and weights must not draw equal numbers: at the start, recovery is that of chance (.4)."""
    truth, start = planted(32, 64, 3, seed=seed), TopKDictionary(32, 64, k=3, seed=seed)
    assert matched_cosine(truth.atoms, start.atoms).mean() < 0.45
