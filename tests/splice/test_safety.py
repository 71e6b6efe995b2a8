"""The tiers of unsafe words, and the words about identity that no tier removes."""

import time

import pytest

from vlsae.splice import safety
from vlsae.splice.safety import TIERS, is_sensitive, is_unsafe, nsfw_caption, words_of

ABOUT_PEOPLE = (
    "woman man girl boy female male muslim islamic jewish jew christian hindu buddhist sikh catholic gay lesbian bisexual "
    "homosexual transgender transvestite queer chinese african american mexican arab asian nigerian indian elderly teenage "
    "blind deaf disabled autistic immigrant refugee hispanic black-woman white-man"
)
IDENTITY = ABOUT_PEOPLE.split()


def listed() -> dict[str, str]:
    lines = (safety.FILES / "unsafe.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def test_the_tiers_are_nested_and_none_removes_nothing():
    words = listed()
    assert len(words) > 1500 and set(words.values()) == {"default", "strict"}
    for word, tier in words.items():
        assert is_unsafe(word, "strict") and not is_unsafe(word, "none"), word
        assert is_unsafe(word) or tier == "strict", word


def test_useful_words_that_a_list_finds_doubtful_go_in_the_strict_tier_only():
    for word in ("crack", "cracker", "gable", "drug", "pistol", "beanbag", "kumquat", "swastika", "guinea pig"):
        assert not is_unsafe(word) and is_unsafe(word, "strict"), word


def test_common_words_that_look_like_plurals_or_parts_of_unsafe_ones_are_safe():
    for word in (
        "assess",
        "glass",
        "grass",
        "cockpit",
        "cocktail",
        "scunthorpe",
        "hose",
        "shoes",
        "bass",
        "who're",
        "spice",
    ):
        assert not is_unsafe(word), word
    assert not any(is_unsafe(w) for w in ("dog", "hot dog", "breast", "bra", "naked", "gun", "blood", "war"))


def test_slurs_pornography_and_their_plurals_are_unsafe_in_any_phrase_and_case():
    for text in (
        "whore",
        "Whores",
        "porn star",
        "PORN-STAR",
        "blow job",
        "blow jobs",
        "pussies",
        "a shitty car",
        "negro",
    ):
        assert is_unsafe(text), text


@pytest.mark.parametrize("text", IDENTITY)
def test_identity_is_tagged_and_never_removed(text):
    assert is_sensitive(text) and is_sensitive(text.upper())
    assert not any(is_unsafe(text, tier) for tier in TIERS)


def test_no_word_is_both_about_identity_and_unsafe():
    both = [w for w in listed() if " " not in w and is_sensitive(w)]
    assert both == []


def test_nationalities_are_about_people_by_themselves_or_beside_another_word_of_the_list():
    assert is_sensitive("french") and is_sensitive("french family") and is_sensitive("old person")
    for text in ("french fries", "old car", "family", "person", "blind alley", "window blind", "dog", "dutch oven"):
        assert not is_sensitive(text), text


def test_captions_are_judged_by_words_and_by_neighbouring_words():
    assert nsfw_caption("Hot PORN here!") and nsfw_caption("a blow-job picture") and nsfw_caption("x. Golden Shower, y")
    assert not nsfw_caption("a muslim woman with a cocker spaniel and a cracker")
    assert nsfw_caption("a cracker", "strict") and not nsfw_caption("porn", "none")
    assert not nsfw_caption("a blow to the job market") and not nsfw_caption("")


def test_words_are_parted_by_everything_that_is_no_letter_or_digit():
    assert words_of("Été, x_ray t-shirt’s 4x4") == ["été", "x", "ray", "t", "shirt", "s", "4x4"]


@pytest.mark.parametrize("judge", [is_unsafe, nsfw_caption])
def test_an_unknown_tier_is_refused_with_the_known_ones(judge):
    with pytest.raises(ValueError, match="'lax'; give one of strict, default, none"):
        judge("dog", "lax")


def test_judging_is_fast_enough_for_the_captions_of_a_web_corpus():
    caption = "a man rides a brown horse along the beach near the blue sea at sunset time"
    nsfw_caption(caption)
    best = min(_seconds(caption) for _ in range(5))
    assert 2_000 * len(caption.split()) / best > 100_000  # measured: about a million words a second


def _seconds(caption: str) -> float:
    start = time.perf_counter()
    for _ in range(2_000):
        nsfw_caption(caption)
    return time.perf_counter() - start
