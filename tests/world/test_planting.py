"""Planted dictionaries have exactly the structure they say."""

import pytest
import torch

from vlsae.world import planted


def test_data_are_codes_times_atoms():
    truth = planted(16, 40, 4, bias=2.0)
    x, z = truth.sample(200)
    assert torch.allclose(x, z @ truth.atoms + truth.bias, atol=1e-6)
    assert torch.equal((z > 0).sum(1), torch.full((200,), 4))
    assert torch.allclose(truth.atoms.norm(dim=1), torch.ones(40), atol=1e-6)
    assert abs(truth.bias.norm().item() - 2.0) < 1e-5


def test_deterministic_and_parts_differ():
    truth = planted(seed=3)
    assert torch.equal(truth.sample(10)[0], planted(seed=3).sample(10)[0])
    assert not torch.equal(truth.sample(10)[0], truth.sample(10, part=1)[0])


def test_coherence_is_the_cosine_within_a_group():
    """Own parts are orthogonal to the common one and random in 255 dimensions: cosine .6 +- .4 x 4/sqrt(255)."""
    truth = planted(256, 40, 3, coherence=0.6, n_groups=4)
    cosine = truth.atoms @ truth.atoms.T
    same = (truth.group[:, None] == truth.group) & ~torch.eye(40, dtype=torch.bool)
    assert (cosine[same] - 0.6).abs().max() < 0.1
    assert cosine[~same & ~torch.eye(40, dtype=torch.bool)].abs().mean() < 0.15


def test_children_never_fire_without_their_parent():
    truth = planted(32, 60, 3, children=2)
    _, z = truth.sample(2000)
    child = (truth.parent >= 0).nonzero()[:, 0]
    assert len(child) == 40
    assert not ((z[:, child] > 0) & (z[:, truth.parent[child]] == 0)).any()
    assert ((z[:, truth.parent[child]] > 0) & (z[:, child] == 0)).any()


def test_modalities_are_disjoint_but_for_shared_atoms():
    truth = planted(32, 60, 3, shared=0.3)
    fired = [(truth.sample(3000, modality=m)[1] > 0).any(0) for m in (0, 1)]
    assert not (fired[0] & (truth.modality == 1)).any()
    assert not (fired[1] & (truth.modality == 0)).any()
    assert (fired[0] & fired[1] & (truth.modality == 2)).any()


def test_noise_level():
    truth = planted(64, 100, 3, noise=0.1)
    x, z = truth.sample(4000)
    assert abs((x - z @ truth.atoms).std().item() - 0.1) < 0.002  # 256,000 draws: standard error 0.00014


def test_impossible_numbers():
    with pytest.raises(ValueError, match="k=9 of 4 atoms"):
        planted(8, 4, 9)
