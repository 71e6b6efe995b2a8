"""The LAION recipe: counting files, continuing, provenance, and the embedded world end to end."""

import hashlib
import json
import os
from collections import Counter

import numpy as np
import pytest

from vlsae.splice import build, tally
from vlsae.splice.build import build_vocabulary
from vlsae.splice.captions import Caption
from vlsae.splice.tally import Settings, Tally, count_captions, count_files, counts_name
from vlsae.splice.vocabulary import Vocabulary
from vlsae.world import concepts, scenes

# ---- files and what is kept of them ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    made = []
    for i in range(3):
        made.append(tmp_path / f"{i}.csv")
        rows = [f'"{scene.caption}",{"NSFW" if j % 10 == 0 else "UNLIKELY"}' for j, scene in enumerate(scenes(60, i))]
        made[-1].write_text("caption,NSFW\n" + "\n".join(rows) + "\n")
    return made


def _counts(found: Tally):
    return [(sorted(kind.items()), kind.total, kind.error) for kind in found.counter.kinds]


def test_an_interrupted_count_goes_on_where_it_was(files, tmp_path, monkeypatch):
    work, settings = tmp_path / "work", Settings(safety="none")
    whole = count_files(files, settings, progress=False)
    read = []

    def reader(path, column, notes):
        read.append(path.name)
        if len(read) == 2:
            yield Caption("counted before the power went")
            raise KeyboardInterrupt
        yield from build.reader_of(path)(path, column, notes)

    monkeypatch.setattr(tally, "reader_of", lambda path: reader)
    with pytest.raises(KeyboardInterrupt):
        count_files(files, settings, work, progress=False)
    again = count_files(files, settings, work, progress=False)
    assert read == ["0.csv", "1.csv", "1.csv", "2.csv"]
    assert _counts(again) == _counts(whole) and again.sources == whole.sources and again.read == whole.read == 180
    count_files(files, settings, work, progress=False)
    assert len(read) == 4  # nothing is read a third time


def test_counts_are_made_anew_when_something_changed(files, tmp_path):
    work, settings = tmp_path / "work", Settings(safety="none")
    before = count_files(files, settings, work, progress=False)
    files[1].write_text("caption\nzebra zebra\n")
    after = count_files(files, settings, work, progress=False)
    assert before.counter.count("zebra") == 0 and after.counter.count("zebra") == 2 and after.read == 121
    (work / counts_name(files[0], settings)).write_bytes(b"half of it")
    assert _counts(count_files(files, settings, work, progress=False)) == _counts(after)
    assert counts_name(files[0], Settings(safety="strict")) != counts_name(files[0], settings)


def test_workers_and_order_change_nothing(files):
    settings = Settings(safety="none", capacity=20)  # far too few, so that order could matter
    one = count_files(files, settings, progress=False)
    two = count_files(files[::-1], settings, workers=2, progress=False)
    assert one.counter.words.error > 0 and one.counter.pairs.error > 0
    assert _counts(one) == _counts(two) and one.sources == two.sources
    with pytest.raises(ValueError, match="1 or more"):
        count_files(files, workers=0)


def test_a_workers_error_arrives(files):
    with pytest.raises(ValueError, match="has the columns caption, NSFW, not 'words'"):
        count_files(files, Settings(column="words", safety="none"), workers=2, progress=False)


@pytest.mark.parametrize(("tier", "by_verdict", "by_words"), [("none", 0, 0), ("default", 1, 1), ("strict", 2, 2)])
def test_captions_drop_by_tier(monkeypatch, tier, by_verdict, by_words):
    listed = {"none": (), "default": ("awful",), "strict": ("awful", "doubtful")}
    monkeypatch.setattr(tally, "nsfw_caption", lambda text, tier: any(w in text for w in listed[tier]))
    captions = [
        "awful dog",
        "doubtful dog",
        Caption("dog", "NSFW"),
        Caption("dog", "UNSURE"),
        Caption("dog", "UNLIKELY"),
    ]
    found = count_captions(captions, Settings(safety=tier))
    assert (found.read, found.by_verdict, found.by_words) == (5, by_verdict, by_words)
    assert found.counter.count("dog") == 5 - by_verdict - by_words


# ---- the whole recipe ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captions():
    return [scene.caption for scene in scenes(900, seed=3)]


def test_without_a_model_it_is_plain_counting(captions):
    words = build_vocabulary(captions, unigrams=50, bigrams=30, safety="none", progress=False)
    stop = {"a", "an", "and", "of", "on"}
    truth = Counter(w for c in captions for w in c.split() if w not in stop)
    ranked = sorted(truth, key=lambda w: (-truth[w], w))[:50]
    assert [c.text for c in words if "two-word" not in c.tags] == ranked
    assert {c.text: c.count for c in words.of_words(1)} == {w: truth[w] for w in ranked}
    assert len(words.of_words(2)) == 30
    assert [c.count for c in words] == sorted((c.count for c in words), reverse=True)


def test_top_words_of_the_world_are_its_concepts(tiny, captions):
    words = build_vocabulary(captions, tiny, unigrams=60, bigrams=20, progress=False, name="world")
    known = {w for kind in concepts().values() for phrase in kind for w in phrase.split()} | {"left", "right"}
    found = words.of_words(1)
    assert len(found) == 60 and len(words) <= 80 and words.name == "world"
    assert set(found.texts) <= known | {"above", "below"}
    assert {"red", "blue", "background"} & set(found.texts)
    rows = tiny.encode_text(list(words.texts)).numpy()
    assert (rows @ rows.T - 2 * np.eye(len(rows))).max() <= 0.9
    for pair in words.of_words(2).texts:
        both = tiny.encode_text(pair.split()).numpy().sum(0)
        assert rows[words.index(pair)] @ both / np.linalg.norm(both) <= 0.9


def test_order_of_captions_and_model_by_name_change_nothing(tiny, captions):
    settings = dict(unigrams=40, bigrams=10, safety="none", progress=False)
    first = build_vocabulary(captions[:400], tiny, **settings)
    second = build_vocabulary(captions[:400][::-1], "tiny", **settings)
    assert first.concepts == second.concepts
    removed = first.provenance["removed_phrases"]
    assert removed == second.provenance["removed_phrases"] and removed["similar"] + removed["explained_by_words"] > 0


def test_unsafe_phrases_go_and_sensitive_ones_are_marked(monkeypatch):
    monkeypatch.setattr(build, "is_unsafe", lambda text, tier: tier == "default" and "owl" in text)
    monkeypatch.setattr(tally, "nsfw_caption", lambda text, tier: False)
    captions = ["red owl"] * 3 + ["muslim woman"] * 2
    words = build_vocabulary(captions, progress=False, bigrams=1)
    assert words.texts == ("red", "muslim", "woman", "muslim woman")
    assert words[0].tags == () and words[1].tags == ("sensitive",) and words[3].tags == ("two-word", "sensitive")
    assert words.provenance["removed_phrases"]["unsafe"] == 2
    assert "owl" in build_vocabulary(captions, safety="none", progress=False).texts


def test_provenance_says_where_everything_came_from(tiny, files, tmp_path):
    words = build_vocabulary(files, tiny, unigrams=20, bigrams=5, progress=False, work=tmp_path / "work")
    about = words.provenance
    text = "".join(f"{scene.caption}\n" for scene in scenes(60, 0))
    assert about["files"][0] == {"name": "0.csv", "captions": 60, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert about["captions"] == {
        "read": 180,
        "dropped_by_verdict": 18,
        "dropped_by_words": 0,
        "damaged": 0,
        "cut_off": [],
    }
    assert about["model"] == {"spec": tiny.spec, "weight_hash": tiny.weight_hash}
    assert about["counting"]["words"]["error"] == about["counting"]["words"]["uncertain_order"] == 0
    assert about["settings"]["similarity"] == 0.9 and set(about["versions"]) >= {"vlsae", "numpy", "torch"}
    assert json.loads(json.dumps(about)) == about
    again = Vocabulary.load(words.save(tmp_path / "out" / "words.jsonl"))
    assert again == words
    resumed = build_vocabulary(files[::-1], tiny, unigrams=20, bigrams=5, progress=False, work=tmp_path / "work")
    assert resumed.concepts == words.concepts


def test_many_files_become_one_line(tmp_path):
    for i in range(120):
        (tmp_path / f"{i:03}.txt").write_text("a red dog\na dog\n")
    about = build_vocabulary(tmp_path, safety="none", progress=False).provenance
    assert [(s["name"], s["captions"]) for s in about["files"]] == [("120 files, 000.txt to 119.txt", 240)]


def test_a_worker_that_dies_is_explained(files, monkeypatch):
    class Pool(tally.ProcessPoolExecutor):
        def submit(self, *job):
            return super().submit(os._exit, 1)  # as the kernel does when memory runs out

    monkeypatch.setattr(tally, "ProcessPoolExecutor", Pool)
    with pytest.raises(OSError, match="want of memory"):
        count_files(files, Settings(safety="none"), workers=2, progress=False)


def test_a_small_capacity_is_owned_up_to(captions):
    words = build_vocabulary(captions, unigrams=20, bigrams=20, capacity=25, safety="none", progress=False)
    for kind in ("words", "pairs"):
        counted = words.provenance["counting"][kind]
        assert 0 < counted["error"] <= counted["error_bound"] <= counted["total"] / 26
        assert counted["uncertain_order"] > 0


def test_fewer_concepts_than_wanted_are_announced(captions, caplog):
    words = build_vocabulary(captions[:50], safety="none", progress=False)
    assert f"{len(words.of_words(1))} of 10000 words" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unigrams": 0, "bigrams": 0}, "0 or more"),
        ({"unigrams": -1}, "0 or more"),
        ({"min_count": 0}, "1 or more"),
        ({"similarity": 2}, "cosine"),
        ({"safety": "lax"}, "safety tier 'lax'"),
        ({"capacity": 0}, "capacity"),
        ({"captions": []}, "There are no captions"),
        ({"captions": [{"caption": "a dog"}]}, "dict is no caption"),
        ({"captions": ["a dog"]}, "No phrase of 1 captions was seen 2 times"),
    ],
)
def test_useless_settings_are_explained(settings, message):
    settings = {"captions": ["a dog", "a dog"], "progress": False, **settings}
    with pytest.raises(ValueError, match=message):
        build_vocabulary(settings.pop("captions"), **settings)


def test_paths_given_as_strings_in_a_list(files, monkeypatch):
    with pytest.raises(ValueError, match="as Path"):
        build_vocabulary([str(files[0])], progress=False)
    monkeypatch.chdir(files[0].parent)
    assert len(build_vocabulary(os.fspath(files[0]), safety="none", progress=False)) > 20


def test_a_model_without_texts_fails_before_counting(files):
    class Blind:
        spec, has_text = "blind", False

    with pytest.raises(ValueError, match="no text tower"):
        build_vocabulary(files, Blind(), progress=False)
