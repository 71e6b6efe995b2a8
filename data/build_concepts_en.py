"""Make the built-in vocabulary `concepts-en` and the list of unsafe words; see README.md beside this file.

    python data/build_concepts_en.py --cuss CUSS/index.js --naughty NAUGHTY/en.json

wordfreq (3.1.1) is needed to run this and nowhere else: only the order that follows from its frequencies is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

from visual_words import Builder, Found, without_doubles
from wordnet import WordNet

from vlsae.splice import safety
from vlsae.splice.vocabulary import Concept, Vocabulary

HERE = Path(__file__).parent
WORDS, PAIRS = 10400, 3400
PROVENANCE = {
    "made_by": "data/build_concepts_en.py",
    "sources": {
        "WordNet 3.0": "words and hierarchy; Copyright 2006 by Princeton University. All rights reserved. "
        "WordNet licence: data/LICENSE-WordNet.txt",
        "wordfreq 3.1.1": "the order of the entries and nothing else; its data are CC BY-SA 4.0",
        "cuss 2.2.0": "words to leave out; MIT",
        "naughty-words 1.2.0": "words to leave out; CC BY 4.0",
        "data/concepts_en_words.txt": "words and choices by hand; Apache-2.0",
    },
    "settings": {"words": WORDS, "pairs": PAIRS, "safety": "default", "language": "en"},
}
HEADER = """\
# Made by data/build_concepts_en.py; see data/README.md. A word is removed by the tier beside it and by stricter ones.
# From cuss 2.2.0 (MIT, Copyright (c) 2016 Titus Wormer) and naughty-words 1.2.0 ("List of Dirty, Naughty, Obscene, and
# Otherwise Bad Words", github.com/LDNOOBW, CC BY 4.0; changed: merged, put into tiers, some words left out or added).
"""


def read_words(path: Path) -> dict[str, list[str]]:
    """Sections of the hand-written file, each with its entries."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[] "), [])
        elif line and not line.startswith("#"):
            current += [entry.strip() for entry in line.split(",") if entry.strip()]
    return sections


def parents(chosen: list[Found], wordnet: WordNet, by_hand: dict[str, str]) -> dict[str, str]:
    """For every text the most frequent word for its nearest more general meaning; else its last word's text."""
    words: dict[str, str] = {}
    for one in sorted(chosen, key=lambda f: (" " in f.text, -f.rank, f.text)):
        if one.synset:
            words.setdefault(one.synset.key, one.text)
    texts = {f.text for f in chosen}
    made = {}
    for one in chosen:
        ups = wordnet.ancestors(one.synset.key) if one.synset else []
        if one.synset and one.synset.key[0] == "a":
            about_people = safety.is_sensitive(one.text)
            ups = [] if one.synset.pointers["!"] or about_people else one.synset.pointers["&"]
        ups = [up for up in ups if up in words]
        alike = [up for up in ups if wordnet.synsets[up].category == one.synset.category]  # fruit is food, not a plant
        parent = by_hand.get(one.text) or (words[(alike or ups)[0]] if ups else "")
        last = one.text.split()[-1]
        if not parent and " " in one.text and not one.synset:
            parent = next((w for w in (last, last.removesuffix("s"), last.removesuffix("es")) if w in texts), "")
        made[one.text] = parent if parent != one.text else ""
    return made


def unsafe_rows(cuss: Path, naughty: Path, words: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Words and phrases with the loosest tier that still removes them."""
    pattern = r"""^\s+(?:'([^']*)'|"([^"]*)"|(\w+)): ([012]),?$"""
    lines = re.finditer(pattern, cuss.read_text(encoding="utf-8"), re.MULTILINE)
    sure = {(m[1] or m[2] or m[3]): int(m[4]) for m in lines}
    explicit = {*json.loads(naughty.read_text(encoding="utf-8")), *words["also unsafe"]}
    ordinary = {" ".join(safety.words_of(w)) for w in words["ordinary words"]}
    rows = {}
    for word in sorted({w for w, level in sure.items() if level > 0} | explicit):
        text = " ".join(safety.words_of(word))
        identity = " " not in text and safety.is_sensitive(text)
        if not text.isascii() or (len(text.replace(" ", "")) < 3 and text != "ho") or identity:
            continue
        surely = sure.get(word, 0) == 2 or word in explicit
        rows[text] = "default" if surely and text not in ordinary else "strict"
    return sorted(rows.items())


def main() -> None:
    """Write both files and print their checksums; a missing obvious concept is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun")
    parser.add_argument("--cuss", type=Path, required=True, help="index.js of npm's cuss 2.2.0")
    parser.add_argument("--naughty", type=Path, required=True, help="en.json of npm's naughty-words 1.2.0")
    parser.add_argument("--out", type=Path, default=safety.FILES, help="folder to write to")
    args = parser.parse_args()
    words = read_words(HERE / "concepts_en_words.txt")
    rows = unsafe_rows(args.cuss, args.naughty, words)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.out.resolve() != safety.FILES.resolve():
        shutil.copy(safety.FILES / "sensitive.txt", args.out)
        safety.FILES = args.out
    safety_file = args.out / "unsafe.tsv"
    safety_file.write_text(HEADER + "".join(f"{word}\t{tier}\n" for word, tier in rows), encoding="utf-8")

    wordnet = WordNet(args.wordnet)
    found = [f for f in Builder(wordnet, words).found() if not safety.is_unsafe(f.text) and len(f.text.split()) < 3]
    found = without_doubles(found, set(words["obvious"]) | set(words["keep"]))
    found.sort(key=lambda f: (not f.by_hand, -f.rank, f.text))
    chosen = [f for f in found if " " not in f.text][:WORDS] + [f for f in found if " " in f.text][:PAIRS]
    chosen.sort(key=lambda f: (-f.rank, f.text))
    missing = sorted(set(words["obvious"]) - {f.text for f in chosen})
    if missing:
        raise SystemExit(f"Obvious concepts are missing: {', '.join(missing)}.")
    above = parents(chosen, wordnet, dict(entry.split("=") for entry in words["parents"]))
    concepts = []
    for f in chosen:
        two = ("two-word",) if " " in f.text else ()
        sensitive = ("sensitive",) if safety.is_sensitive(f.text) else ()
        concepts.append(Concept(f.text, None, (*f.tags, *two, *sensitive), above[f.text]))
    path = Vocabulary(tuple(concepts), "concepts-en", provenance=PROVENANCE).save(args.out / "concepts-en.jsonl")
    for file in (path, safety_file):
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}")  # noqa: T201
    pairs = sum(" " in f.text for f in chosen)
    print(f"{len(chosen) - pairs} words and {pairs} pairs; {len(rows)} unsafe words")  # noqa: T201


if __name__ == "__main__":
    main()
