"""The demo at full size, with the scores it is meant to reach."""

import pytest

from vlsae.demo import run_demo


@pytest.mark.slow
def test_demo_reaches_its_scores(tmp_path):
    m = run_demo(tmp_path, progress=False).metrics
    localised = m["objects_localised"]
    assert localised.value >= 0.8
    assert localised.value > max(localised.baselines.values())
    assert m["zero_shot_original"].value - m["zero_shot_spliced"].value <= 0.02
    assert m["zero_shot_original"].value == m["zero_shot_error_kept"].value
    assert m["names_right"].value > 0.8
