"""A small reader of WordNet 3.0's database files, for the script beside it (see `man 5WN wndb`)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# By the number of the lexicographer file, see `man 5WN lexnames`: adjectives and adverbs, nouns, verbs, participles.
CATEGORIES = [
    *("all", "pert", "adverb"),
    *("tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling"),
    *("food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process"),
    *("quantity", "relation", "shape", "state", "substance", "time"),
    *("body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation", "emotion"),
    *("motion", "perception", "possession", "social", "stative", "weather"),
    "participle",
]


@dataclass
class Synset:
    """One meaning: its key such as "n02084071", its words as they are spelled, and where its pointers lead."""

    key: str
    category: str
    lemmas: list[str]
    gloss: str
    pointers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Sense:
    """One meaning of one word, with its share of the word's uses in WordNet's tagged texts."""

    synset: Synset
    weight: float
    capital: bool


class WordNet:
    """Words with their senses, and how often each was meant in tagged texts.

    Args:
        folder: where `data.noun`, `index.noun` and `cntlist.rev` lie.
    """

    def __init__(self, folder: Path):
        self.synsets: dict[str, Synset] = {}
        self.gloss_words: Counter[str] = Counter()
        for part, name in PARTS.items():
            for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
                if not line.startswith("  "):
                    self._add(part, line)
        counts: dict[tuple[str, str, int], int] = {}
        for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
            key, number, count = line.split()
            lemma, rest = key.split("%")
            counts[lemma, " nvara"[int(rest[0])], int(number)] = int(count)
        self.senses: dict[str, list[Sense]] = defaultdict(list)
        self.tagged: Counter[str] = Counter()
        for part, name in PARTS.items():
            for line in (folder / f"index.{name}").read_text(encoding="utf-8").splitlines():
                if line.startswith("  "):
                    continue
                lemma, *fields = line.split()
                word = lemma.replace("_", " ")
                offsets = fields[-int(fields[1]) :]
                for number, offset in enumerate(offsets, 1):
                    synset = self.synsets[part + offset]
                    spelled = next((x for x in synset.lemmas if x.lower() == word), word)
                    count = counts.get((lemma, part, number), 0)
                    self.tagged[word] += count
                    self.senses[word].append(Sense(synset, count + 0.5 / number, spelled != word))

    def _add(self, part: str, line: str) -> None:
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        n = int(fields[3], 16)
        lemmas = [re.sub(r"\((a|p|ip)\)$", "", x).replace("_", " ") for x in fields[4 : 4 + 2 * n : 2]]
        synset = Synset(part + fields[0], CATEGORIES[int(fields[1])], lemmas, gloss.strip())
        at = 5 + 2 * n
        for i in range(int(fields[4 + 2 * n])):
            symbol, offset, other = fields[at + 4 * i : at + 4 * i + 3]
            if other != "r":
                synset.pointers[symbol].append(("a" if other == "s" else other) + offset)
        self.synsets[synset.key] = synset
        words = re.findall(r"[a-z]+", gloss.lower())
        self.gloss_words.update({f"{a} {b}" for a, b in pairwise(words)})

    def find(self, name: str) -> str:
        """Key of a sense written as "dog.n.1"."""
        word, part, number = name.rsplit(".", 2)
        return [s for s in self.senses[word.replace("_", " ")] if s.synset.key[0] == part][int(number) - 1].synset.key

    def ancestors(self, key: str) -> list[str]:
        """Keys of all more general synsets, nearest first."""
        found: dict[str, None] = {}
        level = [key]
        while level:
            level = [up for k in level for s in ("@", "@i") for up in self.synsets[k].pointers[s] if up not in found]
            found.update(dict.fromkeys(level))
        found.pop(key, None)
        return list(found)
