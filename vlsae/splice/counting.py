"""Count phrases of a stream in bounded memory, with a bound on what the counts can be wrong by."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlsae.atomic import replacing
from vlsae.splice.words import count_phrases

CAPACITY = 1_000_000
BATCH = 8192


@dataclass(frozen=True)
class Ranking:
    """Phrases in the order of their counts, and what is not certain about it.

    Attributes:
        phrases: most frequent first, equal counts in the order of words and letters.
        counts: lower bounds; the true counts are at most `error` higher.
        error: how much too low a count can be, 0 where everything is exact.
        uncertain: phrases whose place could change within the error, also with phrases that are not in the list.
    """

    phrases: tuple[str, ...]
    counts: tuple[int, ...]
    error: int
    uncertain: frozenset[str]


class HeavyHitters:
    """Counts of the frequent keys of a stream (Misra and Gries 1982, in batches).

    Every key may be added while at most `2 * capacity` of them are held. Beyond that, the `capacity + 1`-th largest
    count is taken off all of them, keys without a rest are forgotten, and it is added to `error`. So for every key,
    held or not,

        `count <= true count <= count + error`,   `error <= (total - sum of counts) / (capacity + 1)`:

    each step takes its value off at least `capacity + 1` keys, and no more than `total` can be taken off in all.
    While there are no more than `2 * capacity` keys, the counts are exact.

    Args:
        capacity: keys that survive a step, at least 1. Held are at most `2 * capacity`, and those of a batch in `add`.

    Attributes:
        total: sum of everything added.
        error: how much too low a count can be.

    Raises:
        ValueError: for a capacity below 1.

    Example:
        >>> hitters = HeavyHitters(capacity=1)
        >>> hitters.add({"dog": 5, "cat": 2, "owl": 1})
        >>> hitters.count("dog"), hitters.error, hitters.bound
        (3, 2, 2)
    """

    def __init__(self, capacity: int = CAPACITY):
        if capacity < 1:
            raise ValueError(f"The capacity is {capacity}; it needs to be 1 or more, and {CAPACITY:,} is usual.")
        self.capacity = capacity
        self.total = 0
        self.error = 0
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def bound(self) -> int:
        """The proven ceiling of `error`: `(total - sum of counts) // (capacity + 1)`."""
        return (self.total - sum(self._counts.values())) // (self.capacity + 1)

    def count(self, key: str) -> int:
        """Lower bound of a key's count, 0 for one that is not held."""
        return self._counts.get(key, 0)

    def items(self) -> Iterable[tuple[str, int]]:
        """Keys that are held, with their lower bounds."""
        return self._counts.items()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add the counts of a batch, key -> how often, each 1 or more."""
        if counts and min(counts.values()) < 1:
            raise ValueError(f"A count of {min(counts.values())} was added; counts are 1 or more.")
        own = self._counts
        for key, n in counts.items():
            own[key] = own.get(key, 0) + n
        self.total += sum(counts.values())
        self._shrink()

    def merge(self, other: HeavyHitters) -> None:
        """Add another counter of the same capacity; the errors add up, and the bound holds for the sum."""
        if other.capacity != self.capacity:
            raise ValueError(f"Capacities {self.capacity} and {other.capacity} differ; count with equal ones to merge.")
        own = self._counts
        for key, n in other.items():
            own[key] = own.get(key, 0) + n
        self.total += other.total
        self.error += other.error
        self._shrink()

    def _shrink(self) -> None:
        if len(self._counts) > 2 * self.capacity:
            cut = sorted(self._counts.values(), reverse=True)[self.capacity]
            self._counts = {key: n - cut for key, n in self._counts.items() if n > cut}
            self.error += cut

    def ranking(self, n: int | None = None, min_count: int = 1) -> Ranking:
        """The `n` most frequent keys, all that are held by default.

        Args:
            n: how many, 0 or more.
            min_count: leave out keys whose count is not surely that high.

        Returns:
            A `Ranking`. Two neighbours are in certain order when their counts differ by more than `error`.
        """
        rows = sorted((-c, key.count(" "), key) for key, c in self._counts.items() if c >= min_count)[:n]
        counts = [-row[0] for row in rows]
        keys = [row[2] for row in rows]
        return Ranking(tuple(keys), tuple(counts), self.error, frozenset(self._uncertain(keys, counts)))

    def _uncertain(self, keys: list[str], counts: list[int]) -> Iterator[str]:
        if not self.error or not keys:
            return
        listed = set(keys)
        outside = max((c for key, c in self._counts.items() if key not in listed), default=0)
        above = [counts[0] + self.error + 1, *counts]
        below = [*counts[1:], outside]
        for key, high, count, low in zip(keys, above, counts, below):
            if high - count <= self.error or count - max(low, outside) <= self.error:
                yield key


class PhraseCounter:
    """Counts the words and the two-word phrases of captions in bounded memory.

    Both kinds have their own `HeavyHitters`, so that the many pairs do not push out words. For every phrase
    `count <= true count <= count + error` and `error <= total / (capacity + 1)`, with `total` and `error` of its kind;
    while there are no more than `2 * capacity` phrases of a kind, `error` is 0. For the rules of what is a phrase see
    `vlsae.splice.words.count_phrases`. SpLiCE's published lists also hold stop words; `keep_stop_words` does that.

    Args:
        capacity: phrases of a kind that survive a step, 1 or more. A million takes up to
            0.5 GB, and as much again while files are merged.
        keep_stop_words: count single stop words too.

    Raises:
        ValueError: for a capacity below 1.

    Example:
        >>> counter = PhraseCounter()
        >>> counter.add(["a red dog", "the red dog barks"])
        >>> counter.count("red dog"), counter.words.ranking(2).phrases, counter.pairs.error
        (2, ('dog', 'red'), 0)
    """

    def __init__(self, capacity: int = CAPACITY, keep_stop_words: bool = False):
        self.words = HeavyHitters(capacity)
        self.pairs = HeavyHitters(capacity)
        self.keep_stop_words = keep_stop_words

    @property
    def kinds(self) -> tuple[HeavyHitters, HeavyHitters]:
        """The counters of words and of pairs."""
        return self.words, self.pairs

    def add(self, captions: Iterable[str]) -> None:
        """Count captions, some thousand at a time."""
        captions = iter(captions)
        while batch := list(islice(captions, BATCH)):
            for kind, counts in zip(self.kinds, count_phrases(batch, self.keep_stop_words)):
                kind.add(counts)

    def count(self, phrase: str) -> int:
        """Lower bound of a phrase's count; the true one is at most the `error` of its kind higher."""
        return self.kinds[" " in phrase].count(phrase)

    def merge(self, other: PhraseCounter) -> None:
        """Add the counts of other captions, counted with the same settings; the errors add up.

        Raises:
            ValueError: when the settings differ.
        """
        if other.keep_stop_words != self.keep_stop_words:
            raise ValueError("One counter keeps stop words and the other does not; count with equal settings to merge.")
        for own, more in zip(self.kinds, other.kinds):
            own.merge(more)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the counts and what is known about them as gzipped text, in one step."""
        header = {
            "facts": dict(facts), "capacity": self.words.capacity, "keep_stop_words": self.keep_stop_words,
            "kinds": [{"n": len(kind), "total": kind.total, "error": kind.error} for kind in self.kinds],
        }  # fmt: skip
        with (
            replacing(Path(path)) as partial,
            partial.open("wb") as raw,
            gzip.GzipFile("", "wb", 1, raw, mtime=0) as zipped,  # neither name nor time: equal counts, equal bytes
            io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as file,
        ):
            file.write(json.dumps(header) + "\n")
            for kind in self.kinds:
                file.writelines(f"{n}\t{phrase}\n" for phrase, n in kind.items())

    @classmethod
    def load(cls, path: Path) -> tuple[PhraseCounter, dict[str, Any]]:
        """Read what `save` wrote: the counter and the facts.

        Raises:
            ValueError: for a file that is damaged or something else.
            OSError: for one that cannot be opened.
        """
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
                header = json.loads(file.readline())
                made = cls(header["capacity"], header["keep_stop_words"])
                for kind, about in zip(made.kinds, header["kinds"]):
                    rows = (line.rstrip("\n").split("\t") for line in islice(file, about["n"]))
                    kind._counts = {phrase: int(n) for n, phrase in rows}
                    kind.total, kind.error = about["total"], about["error"]
                    if len(kind) != about["n"]:
                        raise ValueError(f"{about['n']} phrases were announced, {len(kind)} are there")
                if file.read(1):  # reading to the end is also what checks the sum of the file
                    raise ValueError("more follows after the phrases")
                return made, header["facts"]
        except (EOFError, KeyError, TypeError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} holds no phrase counts ({error}); delete it and count again.") from error
