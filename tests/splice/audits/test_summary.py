"""Mean weights and prevalences."""

import numpy as np
import pytest

from tests.splice.audits.planted import coins, names
from vlsae.splice.audits import summarise


def test_numbers_are_those_of_the_dense_matrix():
    w = coins(np.random.default_rng(0), 50, np.linspace(0, 0.9, 8))
    dense = w.toarray()
    found = summarise(w, names(8), n_boot=50)
    np.testing.assert_allclose(found.mean, dense.mean(0), rtol=1e-12)
    np.testing.assert_array_equal(found.prevalence, (dense > 0).mean(0))
    for j in range(1, 8):
        assert found.mean_present[j] == pytest.approx(dense[dense[:, j] > 0, j].mean(), rel=1e-12)
    assert np.isnan(found.mean_present[0]) and found.low[0] == found.high[0] == 0


def test_intervals_cover_the_truth():
    """400 concepts with the same truth are 400 repetitions of one experiment."""
    w = coins(np.random.default_rng(1), 400, np.full(400, 0.3))
    found = summarise(w, names(400), n_boot=400)
    covered = ((found.low <= 0.3 * 0.2) & (found.high >= 0.3 * 0.2)).mean()
    # The percentile interval loses about 1 % at n = 400; 400 trials at .94 have sd .012: three each way.
    assert 0.905 <= covered <= 0.98
    low, high = found.prevalence_interval()
    assert ((low <= 0.3) & (high >= 0.3)).mean() == pytest.approx(0.95, abs=0.035)


def test_intervals_have_the_width_of_the_standard_error():
    w = coins(np.random.default_rng(2), 1000, np.full(50, 0.5))
    found = summarise(w, names(50), n_boot=1000)
    expected = 2 * 1.96 * w.toarray().std(0) / np.sqrt(1000)
    # The two quantiles of 1,000 resamples are uncertain by about 5 % of the width; the mean of 50 by 0.7 %.
    assert ((found.high - found.low) / expected).mean() == pytest.approx(1, abs=0.03)


def test_top_is_sorted_and_leaves_out_what_is_absent():
    found = summarise([[0.0, 0.9, 0.1], [0.0, 0.0, 0.1]], ["never", "once", "always"], n_boot=20)
    assert [r.text for r in found.top(5)] == ["once", "always"]
    assert [r.text for r in found.top(5, by="prevalence")] == ["always", "once"]
    assert [r.text for r in found.top(1, by="mean_present")] == ["once"]
    assert "2 of 3 concepts" in found.table() and found.as_dict()["rows"][0]["n_present"] == 1
    with pytest.raises(ValueError, match="Cannot sort by 'name'"):
        found.top(by="name")


def test_the_seed_fixes_everything():
    w = coins(np.random.default_rng(3), 60, np.full(5, 0.5))
    a, b, c = (summarise(w, names(5), n_boot=40, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.low, b.low)
    assert (a.low != c.low).any()


@pytest.mark.parametrize("settings", [{"n_boot": 3}, {"level": 1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="at least 20 resamples"):
        summarise([[0.1]], ["dog"], **settings)
