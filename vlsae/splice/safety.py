"""What a vocabulary leaves out and what it marks: offensive words by tier, and words about who people are.

The words come from `vocabularies/unsafe.tsv`, which `data/build_concepts_en.py` makes, and from the hand-written
`vocabularies/sensitive.txt`. Every judgement is a few set lookups: about a million words a second on one core.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

FILES = Path(__file__).parent / "vocabularies"
TIERS = ("strict", "default", "none")
WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, as the lists are searched: all that is neither letter nor digit parts words.

    Args:
        text: a word, a phrase or a caption.

    Returns:
        The words, without punctuation.

    Example:
        >>> words_of("A T-shirt, women's")
        ['a', 't', 'shirt', 'women', 's']
    """
    return WORD.findall(text.lower())


def is_unsafe(text: str, tier: str = "default") -> bool:
    """Whether a tier removes a word or phrase: it, one of its words, or what one of them is a plural of, is listed.

    Args:
        text: the word or phrase, in any case.
        tier: "strict" (all that a profanity list finds possibly offensive), "default" (what is surely offensive,
            pornographic or a slur) or "none" (nothing).

    Returns:
        True for what should go. Words about identity, such as "muslim" or "gay", are never unsafe; see `is_sensitive`.

    Raises:
        ValueError: for an unknown tier.

    Example:
        >>> is_unsafe("cracker"), is_unsafe("cracker", "strict"), is_unsafe("cracker", "none")
        (False, True, False)
    """
    singles, phrases = _unsafe(tier)
    words = words_of(text)
    return not singles.isdisjoint(words) or (len(words) > 1 and " ".join(words) in phrases)


def nsfw_caption(text: str, tier: str = "default") -> bool:
    """Whether a caption holds an unsafe word, or a listed phrase anywhere, so that the whole caption should go.

    Args:
        text: the caption.
        tier: as for `is_unsafe`.

    Returns:
        True for a caption to drop.

    Raises:
        ValueError: for an unknown tier.

    Example:
        >>> nsfw_caption("A dog with a cracker."), nsfw_caption("A dog with a cracker.", "strict")
        (False, True)
    """
    singles, phrases = _unsafe(tier)
    words = words_of(text)
    return not singles.isdisjoint(words) or _holds(words, phrases)


def is_sensitive(text: str) -> bool:
    """Whether a word or phrase is about who people are: gender, religion, origin, orientation, disability or age.

    A word such as "french", which is also said of things, counts only by itself or beside another listed word.

    Args:
        text: the word or phrase, in any case.

    Returns:
        True for what carries the tag "sensitive" in a vocabulary.

    Example:
        >>> [is_sensitive(t) for t in ("Muslim", "french", "french woman", "french fries", "dog")]
        [True, True, True, False, False]
    """
    anywhere, alone, beside, phrases = _sensitive()
    words = words_of(text)
    if not anywhere.isdisjoint(words):
        return True
    by_itself = sum(w in alone for w in words)
    listed = by_itself + sum(w in beside for w in words)
    return (by_itself > 0 and (listed > 1 or len(words) == 1)) or _holds(words, phrases)


def _holds(words: list[str], phrases: frozenset[str]) -> bool:
    """Whether two to four neighbouring words are one of the phrases; longer ones are not listed."""
    if len(words) < 2 or not phrases:
        return False
    runs = (" ".join(words[i : i + n]) for n in (2, 3, 4) for i in range(len(words) - n + 1))
    return any(run in phrases for run in runs)


@lru_cache(maxsize=8)
def _unsafe(tier: str) -> tuple[frozenset[str], frozenset[str]]:
    """Listed words and phrases of a tier, with plurals."""
    if tier not in TIERS:
        raise ValueError(f"Unknown safety tier {tier!r}; give one of {', '.join(TIERS)}.")
    if tier == "none":
        return frozenset(), frozenset()
    lines = (FILES / "unsafe.tsv").read_text(encoding="utf-8").splitlines()
    listed = dict(line.split("\t") for line in lines if line and not line.startswith("#"))
    removed = {word for word, tier_of_word in listed.items() if tier_of_word == "default" or tier == "strict"}
    singles, phrases = _split(removed)
    spared = listed.keys() - removed  # a plural that the list has with another tier keeps that one
    return singles - spared, phrases - spared


@lru_cache(maxsize=1)
def _sensitive() -> tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]:
    """Words that count in every phrase, by themselves, and only beside those; and phrases."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (FILES / "sensitive.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[] "), [])
        elif not line.startswith("#"):
            current += [" ".join(words_of(entry)) for entry in line.split()]
    anywhere, phrases = _split(sections["anywhere"])
    return anywhere, _split(sections["alone"])[0], _split(sections["beside"])[0], phrases


def _split(entries: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Single words and phrases, each with its simple plural."""
    singles, phrases = set(), set()
    for entry in entries:
        forms = {entry}
        if entry.endswith(("x", "z", "ch", "sh", "ss")):
            forms.add(entry + "es")
        elif entry.endswith("y") and entry[-2:-1] not in "aeiou":
            forms.add(entry[:-1] + "ies")
        elif not entry.endswith("s"):
            forms.add(entry + "s")
        (phrases if " " in entry else singles).update(forms)
    return frozenset(singles), frozenset(phrases)
