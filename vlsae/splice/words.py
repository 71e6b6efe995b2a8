"""Captions to one- and two-word phrases, a whole batch of captions at once."""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import count

import numpy as np

LONGEST_WORD = 64
# Pronouns of a gender are not here: audits of bias need them as concepts.
STOP_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being both but by can could did
    do does doing done during each etc few for from had has have having here how i if in into is it it's its
    itself just may me might more most much must my nor not of off on only onto or other our ours per quite
    rather should so some such than that that's the their theirs them then there there's these they this those
    though through to too upon us very via was we were what when where whether which while who whom whose why
    will with within would you your yours
    """.split()  # noqa: SIM905
)

BREAK = ","
# One class first, so that the search skips along; then: no apostrophe or hyphen between two letters.
_NO_MARKS = re.compile(r"[^\w\s](?!(?<=\w['-])\w)")
_ODD = re.compile(r"[^\w\s\x00-\x7f]")
_SIGNS = {"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "\u00ad": "", "\ufeff": "", "\ufe0e": "", "\ufe0f": "",
          "\u200b": " "}  # fmt: skip


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign) in ("Mn", "Mc") or sign in "\u200c\u200d"


@lru_cache(maxsize=1)
def _any_script() -> re.Pattern[str]:
    """Like `_NO_MARKS`, with combining marks and joiners as parts of words, where `\\w` alone would tear Hindi apart."""
    inside = rf"\w{''.join(filter(_is_mark, map(chr, range(0x300, sys.maxunicode + 1))))}"
    return re.compile(rf"[^\s{inside}](?!(?<=[{inside}]['-])[{inside}])")


def tokens(text: str) -> list[str]:
    """Words of a text in lower case, with a comma for every sign between words.

    Letters of every script after NFKC; apostrophes and hyphens inside words stay, HTML entities are resolved. Scripts
    without spaces between words, such as Chinese, give one token a clause.

    Args:
        text: one caption, or many with commas between them.

    Example:
        >>> tokens("The café’s T-shirt; 2 €")
        ['the', "café's", 't-shirt', ',', '2', ',']
    """
    if "&" in text:
        text = html.unescape(text)
    text = text.replace("_", BREAK)  # a letter to `\w`, a sign to a reader
    if text.isascii():
        return _NO_MARKS.sub(" , ", text.lower()).split()
    text = text.replace("™", " ").replace("℠", " ")  # NFKC would make letters of them
    text = unicodedata.normalize("NFKC", text)
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = unicodedata.normalize("NFKC", text.lower())  # again: lower case can come apart, as that of İ
    has_marks = any(map(_is_mark, set(_ODD.findall(text))))
    return (_any_script() if has_marks else _NO_MARKS).sub(" , ", text).split()  # the first takes seven times as long


def _is_word(token: str) -> bool:
    return len(token) <= LONGEST_WORD and (token.isalpha() or any(c.isalpha() for c in token))


def count_phrases(texts: Iterable[str], keep_stop_words: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """Count the words and the pairs of adjacent words of captions.

    A pair does not cross punctuation, a number, a word of more than 64 characters, or the end of a caption, and holds
    no stop word. Tokens without a letter are no words.

    Args:
        texts: captions; all are in memory at once, so give batches of some thousand.
        keep_stop_words: also count the single words of `STOP_WORDS`, as SpLiCE's published lists do.

    Returns:
        `(words, pairs)`, each phrase -> its number of occurrences.

    Example:
        >>> count_phrases(["A red dog, a dog on 2 beds", "red dog!"])
        ({'red': 2, 'dog': 3, 'beds': 1}, {'red dog': 2})
    """
    plain, others = [], []
    for text in texts:  # apart, since the way of other scripts is slower
        (plain if text.isascii() else others).append(text)
    found = tokens(" , ".join(plain)) + [BREAK] + (tokens(" , ".join(others)) if others else [])
    # As numbers, which is three times as fast as pairs of strings; a number is given where a token first occurs.
    number: dict[str, int] = defaultdict(count().__next__)
    ids = np.fromiter(map(number.__getitem__, found), np.int64, len(found))
    counts, known = np.bincount(ids).tolist(), list(number)
    usable = np.array([t not in STOP_WORDS and _is_word(t) for t in known])
    kept = usable if not keep_stop_words else usable | np.array([t in STOP_WORDS for t in known])
    words = {known[i]: counts[i] for i in np.flatnonzero(kept).tolist()}
    inside = usable[ids]
    codes, twice = np.unique((ids[:-1] * len(known) + ids[1:])[inside[:-1] & inside[1:]], return_counts=True)
    left, right = np.divmod(codes, len(known))
    return words, {f"{known[a]} {known[b]}": n for a, b, n in zip(left.tolist(), right.tolist(), twice.tolist())}
