"""The built-in English vocabulary: what it promises, without the sources that it was made of."""

import hashlib
from pathlib import Path

import pytest

from vlsae.splice.safety import is_sensitive, is_unsafe
from vlsae.splice.vocabulary import BUILT_IN, Vocabulary

DATA = Path(__file__).parents[2] / "data"
COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,"
    "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,"
    "toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
COCO = COCO_NAMES.split(",")


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.load("concepts-en")


def test_it_has_ten_thousand_words_and_three_thousand_pairs(words):
    pairs = [c for c in words.concepts if " " in c.text]
    assert words.name == "concepts-en" and len(words) <= 16_000
    assert len(words) - len(pairs) >= 10_000 and len(pairs) >= 3_000
    assert all(len(c.text.split()) == 2 and "two-word" in c.tags for c in pairs)
    assert all("two-word" not in c.tags for c in words.concepts if " " not in c.text)


def test_every_entry_is_a_plain_lower_case_word_or_pair_without_a_count(words):
    strange = [
        t
        for t in words.texts
        if not t.isascii() or t != t.lower().strip() or not t.replace(" ", "").replace("-", "").isalpha()
    ]
    assert strange == []
    assert [t for t in words.texts if len(t) < 3] == ["tv"]
    assert all(c.count is None and c.tags[0] in ("noun", "adjective", "verb") for c in words.concepts)


def test_nothing_unsafe_is_in_it(words):
    assert [t for t in words.texts if is_unsafe(t)] == []


def test_words_about_identity_are_in_it_and_tagged(words):
    for text in (
        "man",
        "girl",
        "muslim",
        "jewish",
        "hindu",
        "gay",
        "lesbian",
        "chinese",
        "african",
        "blind",
        "elderly",
    ):
        assert "sensitive" in words[words.index(text)].tags, text
    assert [c.text for c in words.concepts if ("sensitive" in c.tags) != is_sensitive(c.text)] == []
    assert 150 < len(words) - len(words.without("sensitive")) < 400


def test_the_classes_of_coco_and_other_obvious_concepts_are_in_it(words):
    assert len(COCO) == 80
    for text in (
        *COCO,
        "striped",
        "wooden",
        "polar bear",
        "fire truck",
        "coffee cup",
        "living room",
        "swimming pool",
        "smiling",
    ):
        words.index(text)


def test_words_that_show_nothing_are_not_in_it(words):
    wrong = "the and of it must which thus nobody whatever john mike democracy theory percent kilogram seventeen united states"
    assert set(wrong.split()) & set(words.texts) == set()


def test_the_hierarchy_has_no_cycle_and_leads_where_one_expects(words):
    parents = {c.text: c.parent for c in words.concepts}
    for text in parents:
        seen, at = {text}, parents[text]
        while at:
            assert at not in seen, f"{text} is its own ancestor"
            seen.add(at)
            at = parents[at]
    for text, above in [("dog", "animal"), ("fire truck", "vehicle"), ("apple", "food"), ("oak", "tree"), ("nurse", "person"),
                        ("red", "color"), ("chair", "furniture"), ("shirt", "clothing"), ("mosque", "building")]:  # fmt: skip
        assert above in words.ancestors(text), (text, words.ancestors(text))
    assert sum(bool(p) for p in parents.values()) > 0.8 * len(words)


def test_common_concepts_come_first(words):
    assert words.index("dog") < words.index("poodle") < words.index("bandicoot")
    assert words.index("living room") < words.index("komodo dragon")


def test_the_file_is_the_one_that_the_readme_describes():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for name in ("concepts-en.jsonl", "unsafe.tsv"):
        assert hashlib.sha256((BUILT_IN / name).read_bytes()).hexdigest() in readme, name


def test_sources_and_licences_are_said(words):
    said = str(words.provenance)
    assert "WordNet 3.0" in said and "Copyright 2006 by Princeton University" in said and "CC BY-SA" in said
    assert "All rights reserved" in (DATA / "LICENSE-WordNet.txt").read_text(encoding="utf-8")
