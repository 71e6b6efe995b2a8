"""Concept consistency with planted partners, and what its baseline is for."""

import pytest
import torch

from vlsae.metrics.concept_consistency import concept_consistency


def _orthonormal(n: int, d: int = 128) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))[0][:n]


def test_planted_partners_are_counted_one_to_one():
    """48 of 64 atoms are there, in another order and length; 16 are orthogonal to all: .75, with mean cosine .75."""
    own = _orthonormal(80)
    alone = torch.cat([3 * own[:48], own[64:]])[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    found = concept_consistency(own[:64], alone)
    assert found.value == 0.75
    assert found.baselines["mean_cosine"] == pytest.approx(0.75, abs=1e-6)
    # drawn atoms spread over 448^2 / 3904 = 51 dimensions, where .5 is 3.6 standard deviations: half a pair of 48 x 64
    assert found.baselines["gaussian"] <= 3 / 64
    # one atom of the other cannot be the partner of two
    assert concept_consistency(own[[0, 0]], own[[0, 5]]).value == 0.5


@pytest.mark.parametrize("cosine, expected", [(0.49, 0.0), (0.51, 1.0)])
def test_the_threshold(cosine, expected):
    own = _orthonormal(40)
    turned = cosine * own[:20] + (1 - cosine**2) ** 0.5 * own[20:]
    assert concept_consistency(own[:20], turned).value == expected


def test_atoms_that_all_point_one_way_say_nothing():
    """With a common direction ten times the rest any two atoms have cosine .99: so has the baseline, which shows it."""
    directions = _orthonormal(41)
    found = concept_consistency(10 * directions[40] + directions[:20], 10 * directions[40] + directions[20:40])
    assert found.value == found.baselines["gaussian"] == 1.0
