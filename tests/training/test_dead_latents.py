"""What training does about dead latents, beyond AuxK and ghost gradients (test_objectives, test_training)."""

import pytest
import torch

from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.reanimation import Reanimation
from vlsae.training.resampling import resample
from vlsae.world import planted


def _case(dead_latents):
    sae = ReLUDictionary(6, 12, seed=1)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(12, dtype=torch.bool)
    dead[dead_latents] = True
    trace = sae.trace(x)
    return sae, Step(sae, x, trace.pre, trace.z, trace.xhat, dead)


def test_reanimation_raises_every_dead_pre_activation_and_no_other():
    """Also of latents that are negative everywhere, which AuxK cannot reach: d loss / d b_enc is -c/n on the dead."""
    sae, step = _case([2, 5])
    with torch.no_grad():
        sae.b_enc[5] = -50.0
    trace = sae.trace(step.x)
    step.pre = trace.pre
    Reanimation(0.6)(step).backward()
    expected = torch.zeros(12)
    expected[[2, 5]] = -0.6 / 12
    assert torch.allclose(sae.b_enc.grad, expected, atol=1e-7)


def test_resampled_latents_point_at_the_worst_tokens():
    """One token with all of the error: every dead latent must point at it, and the optimiser must have forgotten."""
    sae, step = _case([0, 7])
    step.xhat = step.x.clone()
    step.xhat[3] -= torch.tensor([2.0, 0, 0, 0, 0, 0])
    optimizer = torch.optim.AdamW(sae.parameters(), lr=0.1)
    sae(step.x).square().sum().backward()
    optimizer.step()
    kept = sae.W_dec[1].clone()
    assert resample(step, optimizer, seed=0) == 2
    direction = torch.eye(6)[0]
    assert torch.allclose(sae.W_dec[[0, 7]], direction.expand(2, 6), atol=1e-6)
    alive = sae.W_enc[:, ~step.dead].norm(dim=0).mean()
    assert torch.allclose(sae.W_enc[:, 7], 0.2 * alive * direction, atol=1e-6)
    assert sae.b_enc[[0, 7]].abs().max() == 0
    assert torch.equal(sae.W_dec[1], kept)
    assert optimizer.state[sae.W_dec]["exp_avg"][[0, 7]].abs().max() == 0
    assert optimizer.state[sae.W_enc]["exp_avg_sq"][:, 0].abs().max() == 0
    assert optimizer.state[sae.W_dec]["exp_avg"][1].abs().max() > 0


def test_nothing_to_resample():
    sae, step = _case([])
    before = sae.W_dec.clone()
    assert resample(step, torch.optim.AdamW(sae.parameters()), seed=0) == 0
    assert torch.equal(sae.W_dec, before)


@pytest.mark.parametrize("policy", ["resample", "reanimation"])
def test_latents_that_never_fire_come_back(policy, monkeypatch):
    """A quarter of the latents start at a bias of -10, where AuxK gives no gradient: none of them may stay dead."""
    start = ReLUDictionary._init_weights

    def handicapped(self, generator):
        start(self, generator)
        self.b_enc.data[:16] = -10.0

    monkeypatch.setattr(ReLUDictionary, "_init_weights", handicapped)
    x, _ = planted(32, 64, 3).sample(20_000)
    options = {"n_latents": 64, "l1": 0.1, "lr": 2e-3, "steps": 800, "batch_size": 256, "dead_after_tokens": 5_000,
               "resample_every": 200, "reanimation": 10.0 if policy == "reanimation" else 0.0}  # fmt: skip
    if policy == "resample":
        del options["reanimation"]
    dead = {}
    for chosen in (policy, "none"):
        if chosen == "none":
            options.pop("reanimation", None)
        sae = train(x, "relu", dead_policy=chosen, progress=False, **options)
        dead[chosen] = int((sae.encode(x) != 0).any(0).logical_not()[:16].sum())
    assert dead["none"] == 16
    assert dead[policy] <= 2
