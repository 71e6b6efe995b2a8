"""Profiles and drift: false alarms, power, and what is named."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse, stats

from tests.splice.audits.planted import HIGH, LOW, coins, names
from vlsae.splice.audits import Profile, detectable_difference, drift, profile
from vlsae.splice.audits.inference import fisher_exact

K = 200
TEXTS = names(K)
# From rare to frequent, the way vocabularies are.
PREVALENCE = np.geomspace(0.003, 0.6, K)


def _images(seed, n=1000, **changed):
    """Images of the reference world, with other prevalences where `changed` says `c17=0.3`."""
    p = PREVALENCE.copy()
    for name, value in changed.items():
        p[int(name[1:])] = value
    return coins(np.random.default_rng(seed), n, p)


def test_profile_is_numpys_quantiles():
    w = _images(0, 400)
    found = profile(w, TEXTS, key="k")
    dense = w.toarray()
    np.testing.assert_array_equal(found.prevalence, (dense > 0).mean(0))
    for j in (60, 120, 199):
        there = dense[dense[:, j] > 0, j]
        expected = np.quantile(there, np.arange(1, 10) / 10, method="inverted_cdf")
        np.testing.assert_array_equal(found.edges[j], expected)
        np.testing.assert_array_equal(found.below[j], (dense[:, j, None] <= expected).sum(0))


def test_a_saved_profile_says_the_same(tmp_path):
    reference = profile(_images(1), TEXTS, key="words v1")
    loaded = Profile.load(reference.save(tmp_path / "new" / "profile.json"))
    for name in ("count", "mean", "edges", "below"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(reference, name))
    new = _images(2, c150=0.6)
    assert drift(loaded, new, TEXTS, key="words v1") == drift(reference, new, TEXTS, key="words v1")
    assert not list(tmp_path.glob("**/.partial*"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vlsae_concept_profile": 9}', '{"vlsae_concept_profile": 1}'])
def test_other_files_are_no_profile(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no concept profile"):
        Profile.load(path)


def test_statistics_against_scipy_and_brute_force():
    before, now = _images(3), _images(4, 700, c180=0.3)
    report = drift(profile(before, TEXTS), now, TEXTS)
    reference = profile(before, TEXTS)
    for row in report.rows[::20]:
        j = TEXTS.index(row.text)
        x, y = before[:, j].toarray().ravel(), now[:, j].toarray().ravel()
        full = stats.ks_2samp(x, y).statistic
        # Between two of the edges lie a tenth of either set's positive weights, here about as many of both.
        assert full - 0.1 * max((x > 0).mean(), (y > 0).mean()) - 0.01 <= row.ks <= full + 1e-12
        assert row.ks >= abs(row.prevalence_now - row.prevalence_before) - 1e-12
        bounds = [-np.inf, 0.0, *reference.edges[j], np.inf]
        # Intervals closed on the right, as the definition has them.
        p, q = (np.array([((v > a) & (v <= b)).sum() for a, b in pairwise(bounds)]) + 0.5 for v in (x, y))
        p, q = p / p.sum(), q / q.sum()
        assert row.psi == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-9)


def test_false_alarms_stay_below_the_rate():
    """Without drift any report is false: at most 5 % of 100 comparisons, up to the binomial spread."""
    alarms = sum(
        drift(profile(_images([5, i]), TEXTS), _images([6, i]), TEXTS, min_effect=0.0).exit_code for i in range(100)
    )
    assert alarms <= stats.binom.ppf(0.999, 100, 0.05)  # 12


def test_false_alarms_with_unequal_sizes():
    """A tiny new set against a large reference: where normal approximations break."""
    alarms = sum(
        drift(profile(_images([7, i], 3000), TEXTS), _images([8, i], 60), TEXTS, min_effect=0.0).exit_code
        for i in range(40)
    )
    assert alarms <= stats.binom.ppf(0.999, 40, 0.05)  # 7


def test_ten_points_are_found_at_a_thousand_images_and_named():
    """A change from .2 to .3 is 5.2 standard errors; the strictest step of 400 tests asks for 3.8: power .9."""
    j = int(np.argmin(np.abs(PREVALENCE - 0.2)))
    text, found, others = TEXTS[j], 0, 0
    for i in range(30):
        report = drift(profile(_images([9, i], **{f"c{j}": 0.2}), TEXTS), _images([10, i], **{f"c{j}": 0.3}), TEXTS)
        named = [row.text for row in report.drifted]
        found += text in named
        others += bool(set(named) - {text})
        assert report.exit_code == bool(named)
    assert found >= stats.binom.ppf(0.001, 30, 0.9)  # 21
    assert others <= stats.binom.ppf(0.999, 30, 0.05)  # 6
    assert report.rows[0].text == text and text in str(report)


def test_weights_may_drift_where_prevalence_does_not():
    now = _images(12)
    now[:, 190] = now[:, 190] * 1.5
    report = drift(profile(_images(11), TEXTS), now, TEXTS)
    assert [row.text for row in report.drifted] == ["concept 190"]
    row = report.drifted[0]
    # Uniform on [.05, .35] against 1.5 times that: F - G is largest at .35, (.525 - .35) / .45 of the present ones.
    share = PREVALENCE[190]
    assert row.ks == pytest.approx(share * (1.5 * HIGH - HIGH) / (1.5 * (HIGH - LOW)), abs=0.07)
    assert abs(row.prevalence_now - row.prevalence_before) < 0.05


def test_a_concept_never_seen_before_is_found():
    before, now = _images(13).tolil(), _images(14, c100=0.2)
    before[:, 100] = 0
    report = drift(profile(before.tocsr(), TEXTS), now, TEXTS)
    assert [row.text for row in report.drifted] == ["concept 100"]


def test_power_rises_with_images_and_effect():
    def power(n, rise):
        rng = np.random.default_rng([15, n, int(1000 * rise)])
        a, b = rng.binomial(n, 0.3, 4000), rng.binomial(n, 0.3 + rise, 4000)
        return (fisher_exact(a, n, b, n) <= 0.01).mean()

    by_n = [power(n, 0.08) for n in (100, 300, 1000, 3000)]
    by_rise = [power(500, rise) for rise in (0.0, 0.04, 0.08, 0.16)]
    assert by_n == sorted(by_n) and by_n[-1] > 0.99
    assert by_rise == sorted(by_rise) and by_rise[0] <= 0.01 + 4 * np.sqrt(0.01 * 0.99 / 4000)


@pytest.mark.parametrize("n, m, p", [(1000, 1000, 0.3), (5000, 800, 0.1), (400, 4000, 0.5)])
def test_the_detectable_difference_is_found_four_times_in_five(n, m, p):
    rise = detectable_difference(n, m, prevalence=p, alpha=0.01)
    rng = np.random.default_rng(16)
    power = (fisher_exact(rng.binomial(n, p, 4000), n, rng.binomial(m, p + rise, 4000), m) <= 0.01).mean()
    # Counts are discrete, for which the exact test pays with up to 5 % of power; 4,000 trials have sd .6 %.
    assert 0.74 <= power <= 0.82


def test_detectable_difference_needs_enough_images():
    assert np.isnan(detectable_difference(3, 3, prevalence=0.5, alpha=0.001))
    small, large = (detectable_difference(n, n) for n in (100, 10_000))
    # It shrinks with the root of n, nearly: the variance at p + d is a little less than at p.
    assert small / large == pytest.approx(10, rel=0.06)
    with pytest.raises(ValueError, match="expected at least one image each"):
        detectable_difference(0, 10)


def test_only_the_same_vocabulary_is_compared():
    reference = profile(_images(17, 50), TEXTS, key="a1")
    with pytest.raises(ValueError, match="has the key 'a1' and the new weights 'b2'"):
        drift(reference, _images(18, 50), TEXTS, key="b2")
    with pytest.raises(ValueError, match="first difference is 'concept 1' instead of 'concept 0'"):
        drift(reference, _images(18, 50), [TEXTS[1], TEXTS[0], *TEXTS[2:]], key="a1")
    with pytest.raises(ValueError, match="the number of concepts"):
        drift(reference, sparse.csr_matrix(_images(18, 50)[:, :9]), TEXTS[:9], key="a1")


def test_small_effects_can_be_left_out_and_the_report_is_complete():
    reference, now = profile(_images(19), TEXTS), _images(20, c180=0.6)
    strict = drift(reference, now, TEXTS, min_effect=0.5)
    assert not strict.found and strict.exit_code == 0 and str(strict).startswith("no drift")
    found = drift(reference, now, TEXTS)
    as_dict = json.loads(json.dumps(found.as_dict(n=1)))
    assert as_dict["drifted"] == ["concept 180"] and len(as_dict["rows"]) == 1 and as_dict["exit_code"] == 1
    assert as_dict["tested"] == len(found.rows) <= K
    with pytest.raises(ValueError, match="fdr=2"):
        drift(reference, now, TEXTS, fdr=2)
