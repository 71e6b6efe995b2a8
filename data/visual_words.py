"""Which words of WordNet name something that a picture can show, and how common they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import log10

from wordfreq import zipf_frequency
from wordnet import Sense, Synset, WordNet

# How frequent a word has to be, in Zipf units, before its category's words are commonly known and worth a place.
FLOORS = {
    "animal": 1.5, "artifact": 1.5, "body": 2.0, "food": 1.5, "object": 1.7, "plant": 1.6, "shape": 1.8, "substance": 2.1,
    "person": 2.3, "adjective": 2.0, "verb": 2.3, "act": 2.0, "other": 2.0,
}  # fmt: skip
WHOLE = {"animal", "artifact", "body", "food", "object", "plant", "shape", "phenomenon", "substance", "person"}
VERBS = {"body", "contact", "motion", "consumption", "weather"}
LOOKS = re.compile(r"(ed|y|en|ish|like|less|ing)$")
THINGS = WHOLE - {"person"}
NAMES = {"n": "noun", "a": "adjective", "v": "verb"}
# Pairs are ranked by this too, since WordNet is richest where captions are poorest.
PAIR_BONUS = {"artifact": 0.3, "food": 0.3, "object": 0.2, "animal": 0.1, "act": 0.1, "body": -0.2, "plant": -0.3,
              "person": -0.2, "substance": -0.5}  # fmt: skip


@dataclass
class Found:
    """A candidate: its text, the meaning that stands for it (if WordNet has one), its tags and its rank."""

    text: str
    synset: Synset | None
    tags: tuple[str, ...]
    rank: float
    by_hand: bool = False


class Builder:
    """Chooses visual words of WordNet by their meanings."""

    def __init__(self, wordnet: WordNet, words: dict[str, list[str]]):
        self.wn, self.words = wordnet, words
        self.visual = {wordnet.find(name) for name in words["visual branches"]}
        self.blind = {wordnet.find(name) for name in words["blind branches"]}
        self.chosen = {k: wordnet.find(v) for k, v in (entry.split("=") for entry in words["senses"])}
        self.dropped = {plain_spelling(word) for word in words["drop"]}
        self.dull = set(words["dull in pairs"])
        self.qualities = set(words["visual qualities"])
        self.keep = {*words["keep"], *words["obvious"]}
        self.offensive = {wordnet.find(n) for n in ("ethnic_slur.n.1", "disparagement.n.1", "obscenity.n.1")}
        self._seen: dict[str, bool] = {}

    def sees(self, sense: Sense) -> bool:
        """Whether a picture can show this meaning."""
        if sense.capital:
            return False
        key = sense.synset.key
        if key not in self._seen:
            self._seen[key] = getattr(self, {"n": "_noun", "v": "_verb", "a": "_adjective", "r": "_adverb"}[key[0]])(
                key
            )
        return self._seen[key]

    def _noun(self, key: str) -> bool:
        synset = self.wn.synsets[key]
        if self.offensive.intersection(synset.pointers[";u"]) or synset.pointers["@i"]:
            return False
        for up in (key, *self.wn.ancestors(key)):
            if up in self.visual or up in self.blind:
                return up in self.visual
        return synset.category in WHOLE

    def _verb(self, key: str) -> bool:
        return self.wn.synsets[key].category in VERBS

    def _adverb(self, key: str) -> bool:
        return False

    def _adjective(self, key: str) -> bool:
        synset = self.wn.synsets[key]
        heads = (key, *synset.pointers["&"]) if not synset.pointers["!"] else (key,)
        qualities = {self.wn.synsets[q].lemmas[0] for h in heads for q in self.wn.synsets[h].pointers["="]}
        if qualities & self.qualities:
            return True
        if any(self.wn.synsets[k].category in THINGS - {"body", "substance"} for k in synset.pointers["\\"]):
            return True
        sources = [self.wn.synsets[k] for symbol in ("+", "<") for k in synset.pointers[symbol]]
        shows = any(s.category in (VERBS if s.key[0] == "v" else THINGS) for s in sources)
        return shows and bool(LOOKS.search(synset.lemmas[0]))

    def judge(self, word: str) -> tuple[Synset, tuple[str, ...]] | None:
        """The meaning that stands for a word, with tags, or None where its uses are mostly not visual."""
        senses = self.wn.senses[word]
        visible = [s for s in senses if self.sees(s)]
        total, seen = sum(s.weight for s in senses), sum(s.weight for s in visible)
        if word in self.chosen:
            synset = self.wn.synsets[self.chosen[word]]
            return synset, ("noun", synset.category)
        if not visible or seen < 0.4 * total:
            return None
        weights = {p: sum(s.weight for s in visible if s.synset.key[0] == p) for p in "nav"}
        part = "n" if weights["n"] >= 0.2 * seen else max(weights, key=lambda p: weights[p])
        best = max((s for s in visible if s.synset.key[0] == part), key=lambda s: s.weight).synset
        tags = [NAMES[part], *(NAMES[p] for p in "nav" if p != part and weights[p] >= 0.2 * seen)]
        return best, (*tags, best.category) if part == "n" else tuple(tags)

    def rank(self, text: str, synset: Synset | None, category: str, by_hand: bool) -> float:
        """Zipf frequency of a word; for two words an estimate on that scale.

        wordfreq knows no pairs, so theirs comes from the rarer word, from how often both are written as one
        ("teddybear"), and from WordNet: mentions in definitions, tagged uses, and whether the pair is a kind of its
        last word or has kinds of its own.
        """
        words = text.split()
        if len(words) == 1:
            return zipf_frequency(text, "en")
        rarer = min(5.0, *(zipf_frequency(w, "en") for w in words))
        rank = 0.4 + 0.35 * rarer + 0.35 * zipf_frequency("".join(words), "en") + PAIR_BONUS.get(category, -0.3)
        rank += 0.5 * log10(1 + self.wn.gloss_words[text]) + 0.35 * log10(1 + self.wn.tagged[text])
        if synset:
            rank += 0.2 * log10(1 + len(synset.pointers["~"]))
            above = {x for key in self.wn.ancestors(synset.key) for x in self.wn.synsets[key].lemmas}
            rank += 0.2 if words[-1] in above else 0.0
        return rank + (0.5 if by_hand else 0.0)

    def found(self) -> list[Found]:
        """All candidates, the hand-written ones first and the others after them, each text once."""
        made: dict[str, Found] = {}
        for title, entries in self.words.items():
            if title.startswith("add "):
                for text in entries:
                    self._add_by_hand(made, text, title.split()[1])
        for word in self.wn.senses:
            if (
                word in made
                or plain_spelling(word) in self.dropped
                or not re.fullmatch(r"[a-z]{3,}|[a-z]{2,} [a-z]{2,}", word)
            ):
                continue
            judged = self.judge(word)
            if not judged:
                continue
            synset, tags = judged
            kind = tags[-1]
            if " " in word and (tags[0] != "noun" or word.split()[-1] in self.dull or word.split()[0] in self.dull):
                continue
            rank = self.rank(word, synset, kind, False)
            if " " in word or rank >= FLOORS.get(kind, FLOORS["other"]):
                made[word] = Found(word, synset, tags, rank)
        return list(made.values())

    def _add_by_hand(self, made: dict[str, Found], text: str, category: str) -> None:
        joined = text.replace(" ", "")
        frequent = zipf_frequency(joined, "en")
        if (
            " " in text
            and text not in self.keep
            and (frequent >= 3.2 or (frequent >= 2.2 and joined in self.wn.senses))
        ):
            text = joined  # people write it as one word
        if text in made:
            tags = made[text].tags
            if category in ("adjective", "verb") and category not in tags:
                made[text] = replace(made[text], tags=(tags[0], category, *tags[1:]))
            return
        part = {"adjective": "a", "verb": "v"}.get(category, "n")
        senses = [s.synset for s in self.wn.senses.get(text, ()) if s.synset.key[0] == part]
        alike = [s for s in senses if part != "n" or s.category in (category, "tops")]
        judged = self.judge(text)
        if part == "n" and not senses and not judged and text.endswith("s"):
            judged = self.judge(text.removesuffix("s"))
        if not alike and part == "n" and judged and judged[0].key[0] == "n":
            alike = [judged[0]]
        synset = self.wn.synsets[self.chosen[text]] if text in self.chosen and part == "n" else (alike or [None])[0]
        tags = ("noun", synset.category if synset else category) if part == "n" else (category,)
        if judged:
            tags = (tags[0], *(t for t in judged[1] if t in NAMES.values() and t != tags[0]), *tags[1:])
        made[text] = Found(text, synset, tags, self.rank(text, synset, category, True), True)


def plain_spelling(text: str) -> str:
    """A form that British and American spellings share."""
    text = re.sub("ogue$", "og", text.replace("grey", "gray").replace("yre", "ire").replace("tre", "ter"))
    return text.replace("our", "or").replace("isat", "izat").replace("ae", "e").replace("oe", "e")


def without_doubles(found: list[Found], keep: set[str]) -> list[Found]:
    """Leave out the rarer of two spellings of one thing: "colour" beside "color", "back pack" beside "backpack"."""
    best: dict[str, Found] = {}
    kept: list[Found] = []
    for one in sorted(found, key=lambda f: (f.text not in keep, " " in f.text or f.rank < 2.2, -f.rank, f.text)):
        joined = one.text.replace(" ", "").replace("-", "")
        plain = plain_spelling(joined)
        same = best.setdefault(plain, one)
        spaced = joined == same.text.replace(" ", "").replace("-", "")
        if same is one or one.text in keep or not (spaced or one.synset is same.synset):
            kept.append(one)
    return kept
