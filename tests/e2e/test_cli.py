"""The command line as a user meets it."""

import json

import pytest

from vlsae.cli import COMMANDS, main
from vlsae.world import scenes


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, *(["build"] if command == "vocab" else []), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--out", "--seed", "--json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "nowhere"], "nowhere does not exist"),
        (["extract", ".", "--model", "huge"], "Unknown model 'huge'"),
        (["train", "--data", "nowhere"], "nowhere is no activation store"),
        (["stats", "--data", "nowhere", "--dictionary", "nothing"], "'nothing' is no hub id"),
        (["heatmap", "x.png", "--dictionary", "nothing"], "'nothing' is no hub id"),
        (["stats", "--data", "nowhere"], "runs/run/dictionary does not exist"),
        (["convert", "nothing", "--to", "nonsense"], "Nothing is written as 'nonsense'; choose one of "),
        (["report", "--data", "nowhere"], "nowhere is no activation store"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith(f"vlsae {arguments[0]}: ")
    assert "Traceback" not in error


def test_tiny_run_by_default_paths(tmp_path, monkeypatch, capsys):
    """The commands chain without options, and the picture of the strongest latents is drawn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i, scene in enumerate(scenes(6, seed=1, resolution=96)):
        scene.image.save(tmp_path / "photos" / f"{i}.png")
    assert main(["extract", "photos"]) == 0
    assert main(["train", "--n-latents", "64", "--k", "4", "--steps", "20", "--batch-size", "128"]) == 0
    assert main(["stats"]) == 0
    assert main(["heatmap", "photos/2.png", "--style", "contour"]) == 0
    assert main(["report"]) == 0
    assert (tmp_path / "heatmap.png").exists()
    assert (tmp_path / "runs/run/report.html").exists()
    assert "latents: [" in capsys.readouterr().out


def test_a_small_demo(tmp_path, capsys):
    """All stages of the demo at a twentieth of its size; the full one is in test_demo.py."""
    from vlsae.demo import run_demo

    result = run_demo(tmp_path, n_train=200, n_test=160, n_latents=256, steps=60, progress=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"value", "n", "neurons", "pca", "random"} <= set(metrics["objects_localised"])
    assert {"value", "n", "neurons", "pca", "random", "chance"} <= set(metrics["zero_shot_spliced"])
    assert metrics["zero_shot_original"]["value"] == metrics["zero_shot_error_kept"]["value"]
    assert metrics["zero_shot_original"]["value"] > 0.9
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<article") >= 8
    assert len(result.names) == 256
    assert metrics["pairs_translated"]["value"] > 5 * metrics["pairs_translated"]["chance"]
    assert "Images and sentences in one set of concepts" in html
    assert "What adaptation changed: tiny+maple" in html
    assert metrics["maple_gain_adapted"]["value"] > metrics["maple_gain_base"]["value"]
