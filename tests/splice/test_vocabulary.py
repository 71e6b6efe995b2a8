"""Vocabularies: what they refuse, their files, and the quirks of the lists that SpLiCE published."""

import hashlib
import http.client
import io
import urllib.error
import urllib.request

import pytest

from vlsae.splice import published
from vlsae.splice.published import PUBLISHED, Published, cache_folder, fetch, load_published
from vlsae.splice.vocabulary import Concept, Vocabulary
from vlsae.world import concepts

ANIMALS = Vocabulary(
    (
        Concept("living thing", 90),
        Concept("animal", 80, ("noun",), "living thing"),
        Concept("dog", 70, ("noun",), "animal"),
        Concept("girl", 60, ("noun", "sensitive"), "living thing"),
        Concept("small dog", 50, ("two-word",), "dog"),
    ),
    name="animals",
)

# ---- the vocabulary itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dog", " "], "Entry 1 of the vocabulary 'custom' is blank"),
        (["dog", "cat", "dog"], "Entry 2 of the vocabulary 'custom' is 'dog', which is there already"),
        ([Concept("dog", parent="animal")], "The parent 'animal' of 'dog' is not in the vocabulary"),
        (["dog", 3], "holds 3, which is no string"),
        ("dog", "The concepts are the string 'dog'; give a list"),
    ],
)
def test_what_is_no_vocabulary_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(given)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_a_template_has_one_place_for_the_concept(template):
    with pytest.raises(ValueError, match="needs exactly one '{}'"):
        Vocabulary(["dog"], template=template)


def test_prompts_hold_the_concept_as_it_is():
    words = Vocabulary(["{0} dog", "50% off"], template="a photo of {}.")
    assert words.prompts == ["a photo of {0} dog.", "a photo of 50% off."]
    assert Vocabulary(["dog"]).prompts == ["dog"]  # SpLiCE embeds the bare word


def test_an_unknown_concept_is_answered_with_near_spellings():
    assert [ANIMALS.index(t) for t in ANIMALS.texts] == [0, 1, 2, 3, 4]
    with pytest.raises(
        ValueError, match=r"'animl' is not in the vocabulary 'animals' of 5 concepts; near it are animal\."
    ):
        ANIMALS.index("animl")
    with pytest.raises(ValueError, match=r"'xyz' is not in the vocabulary 'animals' of 5 concepts\.$"):
        ANIMALS.index("xyz")
    with pytest.raises(ValueError, match="near it are dog"):
        ANIMALS.index("Dog")


def test_the_hierarchy_up_and_down():
    assert ANIMALS.ancestors("small dog") == ["dog", "animal", "living thing"]
    assert ANIMALS.ancestors("living thing") == []
    assert ANIMALS.children() == {
        "": ["living thing"], "living thing": ["animal", "girl"], "animal": ["dog"], "dog": ["small dog"]
    }  # fmt: skip


def test_parts_keep_order_facts_and_the_nearest_parent_that_is_left():
    part = ANIMALS.keep([4, 0, 2])
    assert part.texts == ("small dog", "living thing", "dog")
    assert [c.parent for c in part.concepts] == ["dog", "", "living thing"]  # "animal" is gone, its own parent is not
    assert part[0].count == 50 and part[0].tags == ("two-word",) and part.name == "animals"
    assert [c.parent for c in ANIMALS.keep([4]).concepts] == [""]
    assert ANIMALS.head(2).texts == ("living thing", "animal") and ANIMALS.head(99) == ANIMALS
    assert ANIMALS.of_words(2).texts == ("living thing", "small dog")
    assert ANIMALS.without("sensitive").texts == ("living thing", "animal", "dog", "small dog")
    assert ANIMALS.without("nothing") == ANIMALS


def test_the_hash_is_of_what_fixes_the_embeddings():
    base = Vocabulary(["dog", "cat"])
    others = [Vocabulary(["cat", "dog"]), Vocabulary(["dog", "cat"], template="a {}"), Vocabulary(["dog"]),
              Vocabulary(["dog cat"]), Vocabulary(['dog", "cat'])]  # fmt: skip
    assert len({v.hash for v in [base, *others]}) == 6
    same = Vocabulary((Concept("dog", 7, ("noun",)), Concept("cat", parent="dog")), name="x", provenance={"a": 1})
    assert same.hash == base.hash and len(base.hash) == 16


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused_and_none_means_all(size, tmp_path):
    """-1 means "all" in SpLiCE's own code; as a slice it would silently drop the rarest concept."""
    (tmp_path / "mine.txt").write_text("dog\ncat\n")
    ANIMALS.save(tmp_path / "animals.jsonl")
    for source in ("tiny", "concepts-en", ANIMALS, tmp_path / "mine.txt", tmp_path / "animals.jsonl", ["dog", "cat"]):
        with pytest.raises(ValueError, match=f"size={size}; give at least 1, or None"):
            Vocabulary.load(source, size)
    assert len(Vocabulary.load(tmp_path / "mine.txt", None)) == 2


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(tmp_path):
    words = Vocabulary(
        (Concept("café", 3, ("noun", "x")), Concept("naïve 犬", None, (), "café"), Concept('quo"te\\')),
        name="mine", template="das ist {}", provenance={"source": "ñ", "settings": {"a": [1, 2.5, None]}},
    )  # fmt: skip
    path = words.save(tmp_path / "deep" / "words.jsonl")
    assert path == tmp_path / "deep" / "words.jsonl"
    assert Vocabulary.load(path) == words == Vocabulary.load(str(path))
    assert Vocabulary.load(path, 1).texts == ("café",)
    assert [p.name for p in path.parent.iterdir()] == ["words.jsonl"]  # no partial file is left


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = ANIMALS.save(tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    for n in range(len(whole) - 1):  # without the last byte, a line end, the file is still complete
        path.write_bytes(whole[:n])
        with pytest.raises(
            ValueError, match=r"cut.jsonl (announces 5 concepts and holds \d; it was cut off|is no vocab)"
        ):
            Vocabulary.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"[1, 2]", b"3", b'{"a": 1}', b'{"vlsae_vocabulary": 1}', b"\xff\xd8\xff\xe0\x00\x10JFIF"],
)
def test_a_foreign_file_is_named_with_the_remedy(content, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.jsonl is no vocabulary file of vlsae \(.*`vlsae vocab build`"):
        Vocabulary.load(path)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = ANIMALS.save(tmp_path / "x.jsonl")
    path.write_text(path.read_text().replace('"vlsae_vocabulary":1', '"vlsae_vocabulary":2'))
    with pytest.raises(ValueError, match="has format 2; this version reads 1"):
        Vocabulary.load(path)


def test_unknown_names_and_missing_files():
    with pytest.raises(
        ValueError, match="Unknown vocabulary 'laoin'; give one of concepts-en, tiny, laion, laion_bigrams"
    ):
        Vocabulary.load("laoin")
    with pytest.raises(FileNotFoundError, match=r"There is no vocabulary file nowhere/words\.txt"):
        Vocabulary.load("nowhere/words.txt")


def test_the_built_in_ones():
    tiny = Vocabulary.load("tiny")
    known = concepts()
    assert set(tiny.texts) == {w for kind, words in known.items() if kind != "font" for w in words}
    assert tiny[tiny.index("dog")].parent == "animal" and tiny[tiny.index("dog")].tags == ("object",)
    assert set(tiny.children()["animal"]) <= set(known["object"])
    assert Vocabulary.load("concepts-en", 50).texts == Vocabulary.load("concepts-en").texts[:50]
    assert Vocabulary.load(tiny) is tiny and Vocabulary.load(["dog", "cat"]).texts == ("dog", "cat")


# ---- text files, and SpLiCE's ----------------------------------------------------------------------------------------


def test_text_files_of_any_system_are_read(tmp_path, caplog):
    expected = ("café", "dog", "small dog")
    for name, content in [
        ("unix", "café\ndog\nsmall dog\n".encode()),
        ("no last line end", "café\ndog\nsmall dog".encode()),
        ("windows", "café\r\ndog\r\nsmall dog\r\n".encode()),
        ("byte order mark", "\ufeffcafé\r\ndog\r\nsmall dog".encode()),
        ("spaces", "  café\ndog \t\nsmall dog\n".encode()),
    ]:
        path = tmp_path / f"{name}.txt"
        path.write_bytes(content)
        words = Vocabulary.load(path)
        assert words.texts == expected, name
        assert words.name == name and words.provenance["order"] == "descending"
        assert "as_published" not in words.provenance
        assert words.of_words(2)[0].tags == ("two-word",)
    assert caplog.text == ""


def test_what_is_left_out_of_a_text_file_is_said(tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("dog\n\ncat\ndog\n  \n")
    words = Vocabulary.load(tmp_path / "mine.txt")
    assert words.texts == ("dog", "cat")
    assert caplog.messages == ["mine.txt: 2 blank and 1 repeated lines are left out."]
    about = words.provenance
    assert (about["lines"], about["blank"], about["repeated"], about["entries"]) == (5, 2, 1, 2)
    assert about["sha256"] == hashlib.sha256(b"dog\n\ncat\ndog\n  \n").hexdigest()


def test_text_files_that_are_none(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is no UTF-8 text \(invalid continuation byte at byte 3\)"):
        Vocabulary.load(tmp_path / "latin.txt")
    for content in ("", "\n \n"):
        (tmp_path / "empty.txt").write_text(content)
        with pytest.raises(ValueError, match="empty.txt holds no concept; give a text file with one a line"):
            Vocabulary.load(tmp_path / "empty.txt")


def test_a_list_named_as_splices_is_read_from_its_end(tmp_path):
    """The last line is the most frequent concept; the original loader takes the last lines."""
    (tmp_path / "laion.txt").write_text("rare\nseldom\nthe\nof\n")
    words = Vocabulary.load(tmp_path / "laion.txt")
    assert words.texts == ("of", "the", "seldom", "rare")
    assert Vocabulary.load(tmp_path / "laion.txt", 2).texts == ("of", "the")
    assert words.provenance["order"] == "ascending" and words.provenance["as_published"] is False


def test_the_blank_line_of_mscoco_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "mscoco.txt").write_text("gol\n\nbus\na\n")
    assert Vocabulary.load(tmp_path / "mscoco.txt").texts == ("a", "bus", "gol")
    assert caplog.messages == ["mscoco.txt: 1 blank and 0 repeated lines are left out."]


def test_a_size_that_drops_the_pairs_of_laion_bigrams_warns(tmp_path, caplog):
    """In the published list the pairs come first, that is as the rarest; asking for 10,000 of 15,000 loses them."""
    lines = [f"pair {i}" for i in range(10)] + [f"word{i}" for i in range(20)]
    (tmp_path / "laion_bigrams.txt").write_text("\n".join(lines))
    assert len(Vocabulary.load(tmp_path / "laion_bigrams.txt", 25).of_words(2)) == 5  # half of them: nothing is said
    assert caplog.text == ""
    for size, left in [(24, 4), (20, 0)]:
        caplog.clear()
        assert len(Vocabulary.load(tmp_path / "laion_bigrams.txt", size).of_words(2)) == left
        assert caplog.messages == [
            f"laion_bigrams.txt: only {left} of its 10 two-word concepts are among the {size} most frequent entries; take "
            "all 30 to have them."
        ]


def test_the_real_lists_load_as_published(published_files, caplog):
    for name, entries, pairs, first in [
        ("laion", 37_445, 0, "-"), ("laion_bigrams", 15_000, 5_001, "of"), ("mscoco", 12_832, 0, "a")
    ]:  # fmt: skip
        words = Vocabulary.load(published_files / f"{name}.txt")
        assert (len(words), len(words.of_words(2)), words[0].text) == (entries, pairs, first)
        assert words.provenance["as_published"] is True and words.provenance["licence"] == "Apache-2.0"
    assert caplog.messages == ["mscoco.txt: 1 blank and 0 repeated lines are left out."]
    caplog.clear()
    assert len(Vocabulary.load(published_files / "laion_bigrams.txt", 10_000).of_words(2)) == 1
    assert "only 1 of its 5001 two-word concepts are among the 10000" in caplog.text


# ---- downloads -------------------------------------------------------------------------------------------------------

CONTENT = b"rare\nthe\n"


@pytest.fixture
def small(own_cache, monkeypatch) -> Published:
    """The published list "laion" as if it were a file of two lines."""
    item = Published("vocab/laion.txt", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(PUBLISHED, "laion", item)
    return item


def _no_network(monkeypatch, error=None):
    def refuse(address, timeout):
        raise error or urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_without_file_and_network_the_place_for_the_file_is_named(own_cache, monkeypatch):
    _no_network(monkeypatch)
    with pytest.raises(OSError) as caught:
        Vocabulary.load("laion")
    said = str(caught.value)
    assert f"put it at {own_cache / 'splice' / 'laion.txt'} (or set VLSAE_CACHE)" in said
    assert "https://raw.githubusercontent.com/AI4LIFE-GROUP/SpLiCE/" in said and "/data/vocab/laion.txt" in said
    assert "Name or service not known" in said


def test_a_file_in_that_place_is_used_without_a_network(small, own_cache, monkeypatch):
    _no_network(monkeypatch)
    (own_cache / "splice").mkdir(parents=True)
    (own_cache / "splice" / "laion.txt").write_bytes(CONTENT)
    words = Vocabulary.load("laion")
    assert words.texts == ("the", "rare") and words.provenance["as_published"] is True
    assert load_published("laion", 1).texts == ("the",)


def test_a_file_of_another_content_is_refused(own_cache, monkeypatch):
    _no_network(monkeypatch)
    place = own_cache / "splice" / "laion.txt"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    with pytest.raises(ValueError, match=f"laion.txt has the checksum {hashlib.sha256(CONTENT).hexdigest()[:12]}"):
        Vocabulary.load("laion")
    assert Vocabulary.load(place).texts == ("the", "rare")  # by its path it is taken as it is


def test_a_download_is_kept_and_used_offline_afterwards(small, own_cache, monkeypatch):
    asked = []

    def answer(address, timeout):
        asked.append(address)
        return io.BytesIO(CONTENT)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert Vocabulary.load("laion").texts == ("the", "rare")
    assert asked == [f"{published.REPOSITORY}/vocab/laion.txt"]
    assert [p.name for p in (own_cache / "splice").iterdir()] == ["laion.txt"]
    _no_network(monkeypatch)
    assert Vocabulary.load("laion").texts == ("the", "rare")


@pytest.mark.parametrize("body", [CONTENT[:4], b"<html>Please log in</html>", b""])
def test_a_wrong_answer_is_never_kept(small, own_cache, monkeypatch, body):
    """A cut connection or the page of a proxy must not become the file that later runs find."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(body))
    with pytest.raises(OSError, match=rf"not the published file \({len(body)} bytes .* put it at .*laion.txt"):
        fetch(small)
    assert not (own_cache / "splice").exists()


@pytest.mark.parametrize(
    "error", [http.client.IncompleteRead(b"ra", 7), TimeoutError("timed out"), ConnectionResetError()]
)
def test_a_broken_connection_is_an_oserror_with_the_remedy(small, own_cache, monkeypatch, error):
    _no_network(monkeypatch, error)
    with pytest.raises(OSError, match="is not on disk and could not be downloaded .*put it at"):
        fetch(small)


def test_a_download_that_cannot_be_finished_leaves_no_file(small, own_cache, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(CONTENT))

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(small)
    assert not (own_cache / "splice" / "laion.txt").exists()


def test_where_the_cache_is(monkeypatch, tmp_path):
    for variables, place in [
        ({"VLSAE_CACHE": str(tmp_path / "a")}, tmp_path / "a"),
        ({"XDG_CACHE_HOME": str(tmp_path / "b")}, tmp_path / "b" / "vlsae"),
        ({"HOME": str(tmp_path / "c")}, tmp_path / "c" / ".cache" / "vlsae"),
    ]:
        monkeypatch.delenv("VLSAE_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == place
