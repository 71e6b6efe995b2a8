"""The command adapt as a user meets it: a folder of pictures in, accuracies and a folder of weights out."""

import json

import pytest

from vlsae.adaptation.checkpoint import read_adaptation
from vlsae.cli import main
from vlsae.world import scenes

CLASSES = ("apple", "ball", "cat", "dog")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures a class; the names of the folders are moved by one, so that the model is wrong before."""
    place = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(CLASSES):
        folder = place / CLASSES[i - 1]
        folder.mkdir()
        for j, scene in enumerate(scenes(5, seed=i, n_objects=(1, 0, 0, 0), names=(name,))):
            scene.image.save(folder / f"{j}.png")
    return place


def _run(capsys, *arguments):
    assert main(["adapt", *map(str, arguments), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_adapt_learns_the_folder_names_and_writes_what_it_learned(tiny, pictures, tmp_path, capsys):
    out = tmp_path / "probe"
    found = _run(capsys, pictures, "--method", "linear_probe", "--shots", 3, "--set", "C=1000", "--out", out)
    assert (found["n_train"], found["n_held_out"]) == (12, 8)
    assert found["accuracy_before"] <= 0.25
    assert found["accuracy_after"] >= 0.75
    assert json.loads((out / "scores.json").read_text())["accuracy_after"] == found["accuracy_after"]
    adapted = read_adaptation(tiny, out)
    assert adapted.adaptation.class_names == CLASSES
    assert adapted.adaptation.settings == {"C": 1000}


def test_adapt_reports_both_halves_of_the_classes(pictures, tmp_path, capsys):
    options = ("--shots", 4, "--classes", "base", "--templates", "{}", "--out", tmp_path / "out")
    found = _run(capsys, pictures, "--method", "clip_adapter", *options, "--set", "epochs=0", "ratio=0.0")
    assert (found["n_train"], found["n_held_out"]) == (8, 12)  # two of the base classes, ten of the new ones
    assert (found["base_before"], found["new_before"]) == (found["base_after"], found["new_after"])
    b, n = found["base_after"], found["new_after"]
    assert found["harmonic_mean_after"] == pytest.approx(2 * b * n / (b + n) if b + n else 0.0)
    bound = _run(capsys, pictures, "--method", "tip_adapter", *options)
    assert bound["base_after"] is not None
    assert bound["new_after"] is bound["harmonic_mean_after"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "nothing"), "Unknown adaptation method"),
        (("--shots", "9"), "9 shots were asked for"),
        (("--shots", "0", "--method", "tip_adapter"), "give fewer shots"),
        (("--set", "n_ctx"), "give NAME=VALUE"),
    ],
)
def test_mistakes_end_with_one_sentence(pictures, tmp_path, capsys, arguments, message):
    assert main(["adapt", str(pictures), *arguments, "--json", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
