"""Counting in bounded memory against exact counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsae.splice.counting import HeavyHitters, PhraseCounter
from vlsae.splice.words import count_phrases, tokens


def _zipf(n: int, seed: int, kinds: int = 5000) -> list[str]:
    draws = np.random.default_rng(seed).zipf(1.3, n)
    return [f"w{i % kinds}" for i in draws]


def _count(stream, capacity: int, batch: int = 500) -> HeavyHitters:
    hitters = HeavyHitters(capacity)
    for i in range(0, len(stream), batch):
        hitters.add(Counter(stream[i : i + batch]))
        assert len(hitters) <= 2 * capacity
    return hitters


def _assert_bounds(hitters: HeavyHitters, truth: Counter):
    for key in truth:
        assert hitters.count(key) <= truth[key] <= hitters.count(key) + hitters.error
    assert hitters.total == truth.total()
    assert hitters.error <= hitters.bound <= truth.total() / (hitters.capacity + 1)


def test_exact_while_everything_fits():
    stream = _zipf(20_000, seed=0)
    truth = Counter(stream)
    hitters = _count(stream, capacity=(len(truth) + 1) // 2)
    assert dict(hitters.items()) == truth
    assert hitters.error == 0 and hitters.bound == 0
    assert hitters.ranking().uncertain == frozenset()


@pytest.mark.parametrize("capacity", [1, 10, 100])
def test_zipf_stream_keeps_its_bounds_and_its_head(capacity):
    stream = _zipf(50_000, seed=1)
    hitters = _count(stream, capacity)
    _assert_bounds(hitters, Counter(stream))
    assert hitters.error > 0  # or the test would show nothing


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 12).map(str), st.integers(1, 9), max_size=8), max_size=12),
    st.lists(st.dictionaries(st.integers(0, 12).map(str), st.integers(1, 9), max_size=8), max_size=12),
    st.integers(1, 4),
)
def test_bounds_of_any_stream_and_of_any_merge(first, second, capacity):
    """`count <= true <= count + error`, `error <= (total - held) / (capacity + 1)`, also after merging."""
    parts = []
    for batches in (first, second):
        hitters = HeavyHitters(capacity)
        for batch in batches:
            hitters.add(batch)
        _assert_bounds(hitters, sum(map(Counter, batches), Counter()))
        parts.append(hitters)
    errors = parts[0].error + parts[1].error
    parts[0].merge(parts[1])
    _assert_bounds(parts[0], sum(map(Counter, first + second), Counter()))
    assert len(parts[0]) <= 2 * capacity and parts[0].error >= errors


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 15).map(str), min_size=1, max_size=120), st.integers(1, 5), st.integers(1, 6))
def test_phrases_called_certain_keep_their_place(stream, capacity, n):
    """Against the exact ranking: whatever is not uncertain has the place it has in the truth."""
    truth = Counter(stream)
    ranking = _count(stream, capacity, batch=7).ranking(n)
    for place, key in enumerate(ranking.phrases):
        if key not in ranking.uncertain:
            ahead = {k for k in truth if truth[k] > truth[key]}
            level = {k for k in truth if truth[k] == truth[key] and k != key}
            assert ahead == set(ranking.phrases[:place]) - level
            assert not level or ranking.error == 0


def test_certain_and_uncertain_by_hand():
    hitters = HeavyHitters(2)
    hitters.add({"a": 20, "b": 9, "c": 8, "d": 3, "e": 1})  # the third largest, 8, is taken off
    ranking = hitters.ranking()
    assert (ranking.phrases, ranking.counts, ranking.error) == (("a", "b"), (12, 1), 8)
    assert ranking.uncertain == {"b"}  # c could have 8 of 8, b has 1 to 9; a has at least 12
    assert hitters.ranking(1).uncertain == frozenset()


def test_ranking_breaks_ties_by_number_of_words_and_letters():
    hitters = HeavyHitters(9)
    hitters.add({"b c": 2, "z": 2, "a": 2, "y": 3})
    assert hitters.ranking().phrases == ("y", "a", "z", "b c")
    assert hitters.ranking(min_count=3).phrases == ("y",)
    assert hitters.ranking(0).phrases == ()


def test_phrase_counter_against_plain_counting():
    captions = [" ".join(_zipf(8, seed, kinds=60)) for seed in range(3000)]
    truth = Counter(w for c in captions for w in c.split())
    pairs = Counter(f"{a} {b}" for c in captions for a, b in zip(c.split(), c.split()[1:]))
    counter = PhraseCounter()
    counter.add(captions)
    assert dict(counter.words.items()) == truth
    assert dict(counter.pairs.items()) == pairs


def test_merged_parts_equal_the_whole_and_survive_the_disk(tmp_path):
    captions = [" ".join(_zipf(8, seed)) for seed in range(900)]
    whole = PhraseCounter()
    whole.add(captions)
    merged = PhraseCounter()
    for i in range(3):
        part = PhraseCounter()
        part.add(captions[i::3])
        part.save(tmp_path / "part.gz", {"i": i})
        again, facts = PhraseCounter.load(tmp_path / "part.gz")
        assert facts == {"i": i}
        merged.merge(again)
    for a, b in zip(whole.kinds, merged.kinds):
        assert a.ranking() == b.ranking() and a.total == b.total
    assert not list(tmp_path.glob(".partial*"))


def test_small_capacity_is_deterministic_and_kept_on_disk(tmp_path):
    captions = [" ".join(_zipf(8, seed)) for seed in range(900)]
    first, second = PhraseCounter(50), PhraseCounter(50)
    first.add(captions)
    second.add(captions)
    first.save(tmp_path / "a.gz", {})
    again, _ = PhraseCounter.load(tmp_path / "a.gz")
    for a, b, c in zip(first.kinds, second.kinds, again.kinds):
        assert a.error > 0
        assert a.ranking() == b.ranking() == c.ranking()
        assert (a.total, a.error, a.bound) == (c.total, c.error, c.bound)


def test_damaged_counts_are_refused(tmp_path):
    counter = PhraseCounter()
    counter.add(["a red dog"])
    counter.save(tmp_path / "a.gz", {})
    whole = (tmp_path / "a.gz").read_bytes()
    for bad in (whole[:-9], b"", b"text", whole[:20] + b"xxxx" + whole[24:]):
        (tmp_path / "b.gz").write_bytes(bad)
        with pytest.raises(ValueError, match="count again"):
            PhraseCounter.load(tmp_path / "b.gz")


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="1 or more"):
        HeavyHitters(0)
    with pytest.raises(ValueError, match="counts are 1 or more"):
        HeavyHitters(3).add({"a": 0})
    with pytest.raises(ValueError, match="differ"):
        HeavyHitters(3).merge(HeavyHitters(4))
    with pytest.raises(ValueError, match="stop words"):
        PhraseCounter().merge(PhraseCounter(keep_stop_words=True))


@pytest.mark.parametrize(
    ("caption", "words", "pairs"),
    [
        ("Red Dog", {"red", "dog"}, {"red dog"}),
        ("red, dog. owl/cat", {"red", "dog", "owl", "cat"}, set()),
        ("bed of roses", {"bed", "roses"}, set()),
        ("iphone 12 case 4k", {"iphone", "case", "4k"}, {"case 4k"}),
        ("dog’s t-shirt - 'big' x--y", {"dog's", "t-shirt", "big", "x", "y"}, {"dog's t-shirt"}),
        ("snake_case R&amp;B", {"snake", "case", "r", "b"}, {"case r"}),
        ("ÉCOLE ﬁne Ⅻ Lego™ box", {"école", "fine", "xii", "lego", "box"}, {"école fine", "fine xii", "xii lego", "lego box"}),
        ("cafe\u0301 हिन्दी लोगो", {"café", "हिन्दी", "लोगो"}, {"café हिन्दी", "हिन्दी लोगो"}),
        ("❤\ufe0fdog 👩\u200d🚀 cat", {"dog", "cat"}, set()),
        ("two\twords\nhere\u00a0now", {"two", "words", "now"}, {"two words"}),
        ("a" * 65 + " dog", {"dog"}, set()),
        ("2019-20 3.5 — ...", set(), set()),
        ("", set(), set()),
    ],
)  # fmt: skip
def test_what_is_a_phrase(caption, words, pairs):
    assert [set(found) for found in count_phrases([caption])] == [words, pairs]
    assert [set(found) for found in count_phrases([caption, caption, ""])] == [words, pairs]


def test_stop_words_by_choice_and_never_in_pairs():
    words, pairs = count_phrases(["a dog of the king"], keep_stop_words=True)
    assert words == {"a": 1, "dog": 1, "of": 1, "the": 1, "king": 1} and pairs == {}
    assert set(count_phrases(["she and her dog"])[0]) == {"she", "her", "dog"}


@settings(deadline=None)  # the table of combining marks is made once
@given(st.lists(st.text(max_size=30), max_size=6))
def test_any_text_is_counted_as_its_captions_are(texts):
    """Batching changes nothing, no phrase holds white space or capitals that lower-casing would change."""
    words, pairs = Counter(), Counter()
    for text in texts:
        for total, found in zip((words, pairs), count_phrases([text])):
            total.update(found)
    assert count_phrases(texts) == (words, pairs)
    assert all(len(w.split()) == 1 for w in words) and all(len(p.split()) == 2 for p in pairs)
    for text in texts:
        assert all("," not in t or t == "," for t in tokens(text))
