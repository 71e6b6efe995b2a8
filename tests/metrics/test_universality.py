"""Firing entropy, co-firing and energy on codes written by hand."""

import math

import pytest
import torch

from vlsae.metrics.universality import concept_energy, universality


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
