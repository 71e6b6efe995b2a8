"""Firing entropy, co-firing and energy on codes written by hand."""

import math

import pytest
import torch

from vlsae.metrics.universality import concept_energy, energy_cofiring, universality


def test_hand_written_codes():
    a = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    b = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    use = universality({"a": a, "b": b})
    quarter = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert use.entropy[:2].tolist() == [1.0, 0.0]
    assert use.entropy[2].isnan()
    assert use.entropy[3].item() == pytest.approx(quarter, abs=1e-6)
    assert use.cofiring[:, 0].tolist() == [1.0, 1.0]
    assert use.cofiring[0, 1] == 0
    assert use.cofiring[1, 1].isnan()
    assert use.cofiring[:, 3].tolist() == pytest.approx([1 / 3, 1.0])
    assert torch.equal(universality({"a": a.float() * 0.3, "b": b.float() * 0.3}, 0.2).fires, use.fires)


def test_three_models_and_bad_shapes():
    same = torch.ones(5, 2, dtype=torch.bool)
    assert universality(dict.fromkeys("abc", same)).entropy.tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="two models or more"):
        universality({"a": same})


def test_energy_of_atoms():
    z = torch.tensor([[2.0, 0.0], [4.0, 0.0]])
    assert concept_energy(z, torch.tensor([[0.0, 2.0], [1.0, 0.0]])).tolist() == [36.0, 0.0]


def test_energy_follows_cofiring_where_it_was_planted():
    """Latents that fire together at their own rates: energy is rate^2 for unit atoms, so a line of slope 2 in logarithms."""
    z = torch.tril(torch.ones(64, 64))[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    use = universality({"a": z, "b": 3 * z})
    assert energy_cofiring(concept_energy(z, torch.eye(64)), use.cofires) == pytest.approx(1.0, abs=1e-6)
    inverse = concept_energy(z, torch.eye(64) / (use.cofires**2)[:, None])
    assert energy_cofiring(inverse, use.cofires) == pytest.approx(-1.0, abs=1e-6)
    rare = use.cofires < 30
    mixed = torch.where(rare, inverse, 5 * use.cofires**3)
    assert energy_cofiring(mixed, use.cofires) < 0.99
    assert energy_cofiring(mixed, use.cofires, least=30) == pytest.approx(1.0, abs=1e-6)
    # unrelated energies: r has a standard deviation of 1 / sqrt(63), and this is three of them
    unrelated = torch.rand(64, generator=torch.Generator().manual_seed(1))
    assert abs(energy_cofiring(unrelated, use.cofires)) < 0.38


def test_energy_without_cofiring_is_no_number():
    assert math.isnan(energy_cofiring(torch.ones(4), torch.tensor([0, 0, 1, 2])))
    assert math.isnan(energy_cofiring(torch.ones(4), torch.tensor([3, 4, 1, 2])))
    with pytest.raises(ValueError, match=r"Energy has shape \(4,\), cofires \(3,\)"):
        energy_cofiring(torch.ones(4), torch.ones(3))
    with pytest.raises(ValueError, match="least=0"):
        energy_cofiring(torch.ones(4), torch.ones(4), least=0)
