"""`vlsae evaluate` as a user runs it, on few scenes; and what its report says."""

import json

import pytest

from vlsae.cli import main
from vlsae.dictionaries import DICTIONARIES
from vlsae.evaluate import FAMILIES, Evaluation, Score, options_of
from vlsae.report.evaluate import frontier, winners, write_evaluation
from vlsae.training.recipe import make_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate")
    arguments = ["evaluate", "--families", "topk", "relu", "--k", "8", "--frontier", "--scenes", "60", "--held-out"]
    assert main([*arguments, "40", "--steps", "20", "--out", str(out), "--json"]) == 0
    return out, arguments


def test_every_score_is_there(run):
    scores = json.loads((run[0] / "evaluation.json").read_text())
    rows = {row["family"]: row for row in scores["scores"]}
    assert set(rows) == {"topk", "relu", "pca", "ica", "nmf", "kmeans", "random", "identity"}
    assert rows["topk"]["l0"] == pytest.approx(8, abs=0.1)
    assert rows["kmeans"]["l0"] == 1
    assert rows["topk"]["stability"] > 0
    assert rows["pca"]["stability"] is None
    assert 0 <= scores["zeroed"] <= scores["original"] <= 1
    assert scores["n_tokens"] == 40 * 64


def test_the_report_shows_the_table_and_the_figure(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    for text in ("equal sparsity", "topk", "baseline, 192 directions", "data:image/png", "before training"):
        assert text in page


def test_what_is_trained_is_not_trained_again(run, capsys):
    out, arguments = run
    before = (out / "dictionaries" / "topk-8" / "checkpoint.pt").stat().st_mtime_ns
    assert main([*arguments, "40", "--steps", "20", "--out", str(out)]) == 0
    assert (out / "dictionaries" / "topk-8" / "checkpoint.pt").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "at the start" in shown
    assert "topk" in shown


def test_every_trained_family_has_a_recipe():
    """VAEase keeps no code at 0, a transcoder is for another target, VL-SAE (and its view) for two modalities, a crosscoder
    for several layers; a BatchNorm before TopK is the encoder of universal dictionaries; TopK without its ReLU is saev's."""
    trained = {name for name in DICTIONARIES if DICTIONARIES.get(name).trainable}
    left_out = {"vaease", "transcoder", "vl_sae", "distance", "crosscoder", "batch_norm_topk", "unrectified_topk"}
    assert trained - set(FAMILIES) == left_out
    for family in FAMILIES:
        assert make_config(family, None, options_of(family, 12)).family == family


def _score(family, l0, accuracy, trained=True):
    return Score(family, trained, 10, 64, l0, 0.5, 0.0, accuracy, 0.5, 0.9, 0.3 if trained else None)


def test_winners_are_compared_at_equal_sparsity():
    scores = [_score("dense", 60, 0.9), _score("good", 11, 0.8), _score("bad", 9, 0.7), _score("pca", 10, 1.0, False)]
    result = Evaluation(scores, 10, 1.0, 0.1, 5, 50, {})
    assert winners(result)["accuracy"] == ["good"]
    assert frontier(result)[:4] == b"\x89PNG"


def test_a_tie_names_no_single_winner(tmp_path):
    """Three families print .998 though they differ in the fourth digit; one alone is best at explained variance."""
    rows = [("a", 0.99802, 0.8), ("b", 0.9978, 0.7), ("c", 0.99761, 0.7), ("d", 0.99, 0.7)]
    scores = [Score(name, True, 8, 64, 8.0, ev, 0.0, accuracy, 0.5, 0.5) for name, accuracy, ev in rows]
    result = Evaluation(scores, 8, 1.0, 0.8, 100, 6400, {})
    best = winners(result)
    assert best["accuracy"] == ["a", "b", "c"]
    assert best["ev"] == ["a"]
    page = write_evaluation(result, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "spliced zero-shot accuracy: 3 of 4 tie, it does not separate them" in page
    assert "explained variance: <b>a</b>" in page
    assert page.count("<b>0.998</b>") == 3
