"""The commands decompose, drift, mean and vocab build as a user meets them."""

import json

import numpy as np
import pytest
from PIL import Image

from vlsae.cli import main
from vlsae.report.splice import dataset_chart, picture_chart
from vlsae.splice import ModalityMean, SpLiCE, Vocabulary
from vlsae.splice.audits import summarise
from vlsae.world import scenes

N = 70


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def drawn():
    return scenes(2 * N, seed=31)


@pytest.fixture(scope="module")
def folders(drawn, tmp_path_factory):
    """Two folders of the same kind of scenes, and a third in which every second one has turned dark and blue."""
    place = tmp_path_factory.mktemp("photographs")
    for name in ("before", "after", "shifted", "few"):
        (place / name).mkdir()
    for i in range(N):
        drawn[i].image.save(place / "before" / f"{i:02}.png")
        drawn[N + i].image.save(place / "after" / f"{i:02}.png")
        shifted = drawn[N + i].image if i % 2 else Image.new("RGB", (64, 64), (20, 40, 160))
        shifted.save(place / "shifted" / f"{i:02}.png")
    for i in range(3):
        drawn[i].image.save(place / "few" / f"{i}.png")
    return place


@pytest.fixture
def vlsae(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(a) for a in arguments])
        return code, capsys.readouterr()

    return run


def _json(result) -> dict:
    code, printed = result
    assert code == 0 and printed.err == ""  # no progress bar gets into the way of a pipe
    lines = printed.out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def _is_a_chart(path) -> Image.Image:
    """A picture of a readable size with dark ink, the bars' blue, and white paper."""
    image = Image.open(path).convert("RGB")
    pixels = np.asarray(image).astype(int)
    assert image.width >= 800 and image.height >= 300
    for name, color in [("white", (255, 255, 255)), ("blue", (0, 0x72, 0xB2))]:
        assert (np.abs(pixels - color).max(-1) <= 8).mean() > 0.005, f"there is no {name} in {path}"
    assert (pixels.max(-1) < 90).any()  # letters
    return image


# ---- decompose -------------------------------------------------------------------------------------------------------


def test_one_picture(vlsae, folders, tiny, drawn, tmp_path):
    found = SpLiCE(tiny, "tiny", progress=False).decompose([drawn[0]])
    code, printed = vlsae("decompose", folders / "few" / "0.png")
    assert code == 0
    first = printed.out.splitlines()[0].split("  ")[0]
    assert first == found.top(0)[0][0]
    assert f"{found.l0[0]} concepts, cosine {found.cosine[0]:.3f}" in printed.out
    assert "model: tiny" in printed.out and "chart: runs/decompose/chart.png" in printed.out
    image = _is_a_chart(tmp_path / "runs/decompose/chart.png")
    picture = np.asarray(drawn[0].image).reshape(-1, 3)
    ground = np.unique(picture, axis=0, return_counts=True)
    ground = ground[0][ground[1].argmax()]  # the most frequent colour of the picture fills part of the left third
    left = np.asarray(image)[:, : image.width // 2]
    assert (np.abs(left.astype(int) - ground).max(-1) <= 2).mean() > 0.05
    saved = json.loads((tmp_path / "runs/decompose/concepts.json").read_text())
    assert [c["concept"] for c in saved[0]["concepts"]] == [t for t, _ in found.top(0)]


def test_one_picture_as_json(vlsae, folders, tmp_path):
    result = _json(vlsae("decompose", folders / "few" / "0.png", "--json", "--out", "here"))
    assert result["name"] == str(folders / "few" / "0.png") and result["n"] == 1
    assert len(result["concepts"]) == result["l0"] > 0 and 0 < result["cosine"] < 1 and result["gap"] < 1e-6
    assert json.loads((tmp_path / result["table"]).read_text())[0]["concepts"] == result["concepts"]
    assert result["chart"] == "here/chart.png"
    _is_a_chart(tmp_path / "here" / "chart.png")


def test_a_folder(vlsae, folders, tiny, tmp_path):
    code, printed = vlsae("decompose", folders / "few")
    assert code == 0 and "3 images" in printed.out and "n: 3" in printed.out
    _is_a_chart(tmp_path / "runs/decompose/chart.png")
    result = _json(vlsae("decompose", folders / "few", "--json"))
    saved = json.loads((tmp_path / result["table"]).read_text())
    assert [row["name"] for row in saved] == [str(folders / "few" / f"{i}.png") for i in range(3)]
    assert result["l0"] == pytest.approx(np.mean([row["l0"] for row in saved]))
    summary = json.loads((tmp_path / result["summary"]).read_text())
    assert summary["n"] == 3
    several = _json(vlsae("decompose", *[folders / "few" / f"{i}.png" for i in range(3)], "--json"))
    assert several == result  # named one by one or by their folder


def test_a_corrupt_first_picture_does_not_cost_the_others(vlsae, folders, tmp_path):
    """Of two pictures one is left, which is drawn; the warning says which is not."""
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.png").write_bytes(b"no picture")
    (tmp_path / "two" / "b.png").write_bytes((folders / "few" / "1.png").read_bytes())
    code, printed = vlsae("decompose", "two")
    assert code == 0 and "n: 1" in printed.out
    _is_a_chart(tmp_path / "runs/decompose/chart.png")
    (tmp_path / "two" / "b.png").unlink()
    code, printed = vlsae("decompose", "two")
    assert code == 2 and "None of 1 images can be read" in printed.err


def test_texts(vlsae, tmp_path):
    result = _json(vlsae("decompose", "--text", "a red dog", "--json"))
    assert {c["concept"] for c in result["concepts"][:2]} == {"red", "dog"} and result["name"] == "a red dog"
    _is_a_chart(tmp_path / result["chart"])
    code, printed = vlsae("decompose", "--text", "a red dog", "a blue car")
    assert code == 0 and "n: 2" in printed.out
    _is_a_chart(tmp_path / "runs/decompose/chart.png")


def test_settings_reach_the_solver(vlsae, folders, tmp_path):
    picture = folders / "few" / "2.png"
    result = _json(vlsae("decompose", picture, "--n-concepts", 3, "--method", "omp", "--json"))
    assert result["l0"] == 3 and result["gap"] is None
    lam, l1 = (_json(vlsae("decompose", picture, *how, "--json")) for how in (["--lam", 0.2], ["--l1", 0.4]))
    assert lam == l1 and lam["l1"] == 0.4
    head = _json(vlsae("decompose", picture, "--size", 30, "--json"))
    assert {c["concept"] for c in head["concepts"]} <= set(Vocabulary.load("tiny").texts[:30])
    (tmp_path / "mine.txt").write_text("dog\ncat\nhouse\n")
    mine = _json(vlsae("decompose", picture, "--vocabulary", "mine.txt", "--mean", "none", "--l1", 0.01, "--json"))
    assert mine["vocabulary"] == "mine" and {c["concept"] for c in mine["concepts"]} <= {"dog", "cat", "house"}


def test_no_concept_at_all_is_still_an_answer(vlsae, folders, tmp_path):
    for images in (folders / "few" / "0.png", folders / "few"):
        code, printed = vlsae("decompose", images, "--l1", 3)
        assert code == 0
        Image.open(tmp_path / "runs/decompose/chart.png").verify()
    code, printed = vlsae("decompose", folders / "few" / "0.png", "--l1", 3)
    assert "no concept: the penalty is larger than every correlation" in printed.out


# ---- mean ------------------------------------------------------------------------------------------------------------


def test_a_mean_is_taken_and_used(vlsae, folders, tiny, drawn, tmp_path):
    result = _json(vlsae("mean", folders / "before", "--out", "m.json", "--json"))
    assert (result["modality"], result["n"], result["mean"]) == ("image", N, "m.json")
    found = ModalityMean.load(tmp_path / "m.json")
    x = tiny.encode_image([drawn[i] for i in range(N)]).numpy()
    np.testing.assert_allclose(found.vector, x.mean(0), atol=1e-6)
    assert found.data == "before" and found.weight_hash == tiny.weight_hash
    used = _json(vlsae("decompose", folders / "few" / "0.png", "--mean", "m.json", "--json"))
    own = _json(vlsae("decompose", folders / "few" / "0.png", "--json"))
    assert used["concepts"] != own["concepts"]
    expected = SpLiCE(tiny, "tiny", image_mean=found, progress=False).decompose([drawn[0]])
    assert used["cosine"] == pytest.approx(expected.cosine[0], abs=1e-4)


def test_a_mean_of_texts_is_that_of_texts(vlsae, drawn, tiny, tmp_path):
    texts = [drawn[i].caption for i in range(20)]
    (tmp_path / "captions.txt").write_text("\n".join(texts) + "\n\n")
    result = _json(vlsae("mean", "captions.txt", "--text", "--json"))
    assert (result["modality"], result["n"]) == ("text", 20)
    found = ModalityMean.load(tmp_path / result["mean"])
    np.testing.assert_allclose(found.vector, tiny.encode_text(texts).numpy().mean(0), atol=1e-6)
    used = _json(vlsae("decompose", "--text", "a red dog", "--mean", result["mean"], "--json"))
    expected = SpLiCE(tiny, "tiny", text_mean=found, progress=False).decompose(["a red dog"])
    assert used["cosine"] == pytest.approx(expected.cosine[0], abs=1e-4)


# ---- drift -----------------------------------------------------------------------------------------------------------


def test_the_same_kind_of_pictures_has_not_drifted(vlsae, folders, tmp_path):
    code, printed = vlsae("drift", folders / "before", folders / "after")
    assert code == 0 and "no drift" in printed.out and "drifted: False" in printed.out
    assert json.loads((tmp_path / "runs/drift/drift.json").read_text())["drift"] is False
    assert (tmp_path / "runs/drift/profile.json").exists()


def test_a_planted_shift_is_found_with_exit_code_1(vlsae, folders, tmp_path):
    """Half of the pictures became plain blue: their concepts leave half of 70 pictures for new ones."""
    code, printed = vlsae("drift", folders / "before", folders / "shifted", "--out", "d")
    assert code == 1 and "DRIFT" in printed.out and "drifted: True" in printed.out
    report = json.loads((tmp_path / "d" / "drift.json").read_text())
    assert report["drift"] is True and report["exit_code"] == 1
    assert any("blue" in text for text in report["drifted"])
    # the profile stands for the pictures, and gives the same verdict
    code, printed = vlsae("drift", "d/profile.json", folders / "shifted", "--json")
    assert code == 1 and json.loads(printed.out)["drifted"] is True
    again = json.loads((tmp_path / "runs/drift/drift.json").read_text())
    assert again["drifted"] == report["drifted"]


@pytest.mark.parametrize("other", [["--l1", 0.3], ["--mean", "none"], ["--size", 50], ["--n-concepts", 5]])
def test_a_profile_of_other_settings_is_refused(vlsae, folders, tmp_path, other):
    """Weights of another penalty, centring or vocabulary differ without any drift."""
    vlsae("drift", folders / "few", folders / "few")
    code, printed = vlsae("drift", "runs/drift/profile.json", folders / "few", *other, "--json")
    assert code == 2 and printed.err.startswith("vlsae drift: ") and "cannot be compared" in printed.err


# ---- vocab -----------------------------------------------------------------------------------------------------------


def test_a_vocabulary_is_built_and_used(vlsae, folders, drawn, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(drawn[i].caption for i in range(2 * N)))
    result = _json(
        vlsae("vocab", "build", "captions.txt", "--unigrams", 40, "--bigrams", 10, "--out", "w.jsonl", "--json")
    )
    words = Vocabulary.load(tmp_path / "w.jsonl")
    assert result["vocabulary"] == "w.jsonl" and result["captions"]["read"] == 2 * N and words.name == "w"
    assert result["n_words"] + result["n_pairs"] == len(words) and 0 < result["n_words"] <= 40
    counts = [c.count for c in words.concepts]
    assert counts == sorted(counts, reverse=True)
    used = _json(vlsae("decompose", folders / "few" / "0.png", "--vocabulary", "w.jsonl", "--json"))
    assert used["vocabulary"] == "w" and {c["concept"] for c in used["concepts"]} <= set(words.texts)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decompose", "nowhere.png"], "nowhere.png does not exist"),
        (["decompose", "."], "holds no image files"),
        (["decompose", "x.png", "--vocabulary", "laoin"], "Unknown vocabulary 'laoin'"),
        (["decompose", "x.png", "--vocabulary", "no/words.txt"], "There is no vocabulary file no/words.txt"),
        (["decompose", "x.png", "--model", "huge"], "Unknown model 'huge'"),
        (["decompose", "x.png", "--mean", "no.json"], "There is no mean no.json"),
        (["decompose", "x.png", "--l1", "0"], "The penalty is 0.0; it must be finite and above 0"),
        (["decompose", "x.png", "--size", "0"], "size=0; give at least 1"),
        (["decompose", "x.png", "--n-concepts", "0"], "n_concepts=0; give a whole number from 1"),
        (["decompose", "x.png", "--method", "magic"], "magic"),
        (
            ["decompose", "x.png", "--mean", "batch"],
            "The mean of 1 embeddings is no mean of a modality; give 64 or more",
        ),
        (["drift", "nowhere", "x.png"], "nowhere does not exist"),
        (["drift", "nothing.json", "x.png"], "nothing.json"),
        (["mean", "nowhere"], "nowhere does not exist"),
        (["mean", "x.png"], "at least two finite embeddings"),
        (["mean", "nowhere.txt", "--text"], "nowhere.txt"),
        (["vocab", "build", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(vlsae, folders, tmp_path, arguments, message):
    (tmp_path / "x.png").write_bytes((folders / "few" / "0.png").read_bytes())
    if arguments[1] == ".":
        (tmp_path / "x.png").unlink()
    code, printed = vlsae(*arguments)
    errors = [line for line in printed.err.splitlines() if line.startswith("vlsae ")]
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"vlsae {arguments[0]}: ") and message in errors[0]
    assert "Traceback" not in printed.err


def test_two_penalties_are_refused_by_the_parser(vlsae, capsys):
    with pytest.raises(SystemExit) as stop:
        vlsae("decompose", "x.png", "--l1", "0.1", "--lam", "0.1")
    assert stop.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


# ---- charts ----------------------------------------------------------------------------------------------------------


def test_concepts_that_are_not_there_are_marked(tiny, drawn, tmp_path):
    """Orange, and in words, so that the colour is not needed; blue alone where all are true."""
    found = SpLiCE(tiny, "tiny", progress=False).decompose([drawn[0]])
    true = {text for text, _ in found.top(0)}
    shares = []
    for truth in (true, true - {found.top(0)[0][0]}):
        (tmp_path / "c.png").write_bytes(picture_chart(None, found, 0, truth))
        pixels = np.asarray(_is_a_chart(tmp_path / "c.png")).astype(int)
        shares.append((np.abs(pixels - (0xD5, 0x5E, 0)).max(-1) <= 8).mean())
    assert shares[0] == 0 and shares[1] > 0.005


def test_a_chart_is_the_same_every_time(tiny, drawn):
    found = SpLiCE(tiny, "tiny", progress=False).decompose([drawn[0], drawn[1]])
    summary = summarise(found.weights, found.texts, n_boot=20)
    assert dataset_chart(summary, "2 images") == dataset_chart(summary, "2 images")
