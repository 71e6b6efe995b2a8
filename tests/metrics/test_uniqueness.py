"""Overlap of top images: brute force over sets, and the ends of the scale."""

import numpy as np
import pytest

from vlsae.metrics import uniqueness
from vlsae.metrics.uniqueness import top_image_overlap


def test_it_is_the_jaccard_index_of_all_pairs(monkeypatch):
    """Against Python's sets; blocks of 7 latents, padding, repeated images and empty rows included."""
    monkeypatch.setattr(uniqueness, "BLOCK", 7)
    top = np.random.default_rng(0).integers(-1, 25, (40, 8))
    top[5] = top[23] = -1
    top[11] = top[30]
    sets = [set(row[row >= 0].tolist()) for row in top]
    live = [i for i, found in enumerate(sets) if found]
    jaccard = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i in live for j in live if i != j}
    found = top_image_overlap(top, threshold=0.4)
    assert found.metrics["jaccard"].value == pytest.approx(np.mean(list(jaccard.values())), abs=1e-12)
    best = {i: max(jaccard[i, j] for j in live if j != i) for i in live}
    assert found.nearest[live].tolist() == pytest.approx([best[i] for i in live], abs=1e-12)
    assert all(jaccard[i, found.partner[i]] == pytest.approx(best[i]) for i in live if best[i] > 0)
    assert np.isnan(found.nearest[[5, 23]]).all() and (found.partner[[5, 23]] == -1).all()
    assert found.partner[11] == 30 and found.nearest[30] == 1
    assert found.metrics["unique"].value == pytest.approx(np.mean([best[i] < 0.4 for i in live]))
    assert found.metrics["unique"].n == len(live) == 38


def test_the_ends_of_the_scale():
    apart, alike = top_image_overlap(np.arange(64).reshape(4, 16)), top_image_overlap(np.tile(np.arange(16), (4, 1)))
    assert [m.value for m in apart.metrics.values()] == [0, 1]
    assert [m.value for m in alike.metrics.values()] == [1, 0]
    assert apart.partner.tolist() == [-1] * 4
    assert np.isnan(top_image_overlap(np.full((3, 2), -1)).metrics["unique"].value)
    with pytest.raises(ValueError, match=r"top has shape \(3,\) and threshold=0.5; expected \[n, N\]"):
        top_image_overlap(np.arange(3))
