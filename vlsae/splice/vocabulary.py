"""A concept vocabulary: words in order of frequency, with what is known about them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlsae.atomic import replacing

FORMAT = 1
BUILT_IN = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True)
class Concept:
    """One entry of a vocabulary.

    Attributes:
        text: the word or phrase.
        count: how often it was seen, or None where only the order is known.
        tags: facts such as "noun", "two-word" or "sensitive".
        parent: text of the nearest more general concept of the same vocabulary, or "" at the top.
    """

    text: str
    count: int | None = None
    tags: tuple[str, ...] = ()
    parent: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """Concepts that an embedding can be decomposed into, most frequent first.

    Args:
        concepts: without blanks or repetitions; strings are taken as bare concepts.
        name: short, for reports.
        template: prompt with one `{}` into which a concept is put before it is embedded. SpLiCE uses the bare word.
        provenance: where the words come from: source, licence, settings and checksums.

    Raises:
        ValueError: for blank or repeated concepts, an unknown parent, or a template without one `{}`.

    Example:
        >>> words = Vocabulary(["dog", "red", "small dog"], name="mine")
        >>> len(words), words[2].text, words.index("red"), words.of_words(2).texts
        (3, 'small dog', 1, ('small dog',))
    """

    concepts: tuple[Concept, ...]
    name: str = "custom"
    template: str = "{}"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.concepts, str):
            raise ValueError(f"The concepts are the string {self.concepts!r}; give a list of strings.")
        made = tuple(c if isinstance(c, Concept) else Concept(c) for c in self.concepts)
        wrong = next((c.text for c in made if not isinstance(c.text, str)), None)
        if wrong is not None:
            raise ValueError(f"The vocabulary {self.name!r} holds {wrong!r}, which is no string; give strings.")
        object.__setattr__(self, "concepts", made)
        if self.template.count("{}") != 1:
            raise ValueError(f"The template {self.template!r} needs exactly one '{{}}', where the concept goes.")
        seen: set[str] = set()
        for i, text in enumerate(self.texts):
            if not text.strip() or text in seen:
                what = "blank" if not text.strip() else f"{text!r}, which is there already"
                raise ValueError(f"Entry {i} of the vocabulary {self.name!r} is {what}; leave it out.")
            seen.add(text)
        strange = next((c for c in self.concepts if c.parent and c.parent not in seen), None)
        if strange:
            raise ValueError(f"The parent {strange.parent!r} of {strange.text!r} is not in the vocabulary.")

    def __len__(self) -> int:
        return len(self.concepts)

    def __getitem__(self, i: int) -> Concept:
        return self.concepts[i]

    @property
    def texts(self) -> tuple[str, ...]:
        """The concepts as strings."""
        return tuple(c.text for c in self.concepts)

    @property
    def prompts(self) -> list[str]:
        """What the text tower reads: every concept in the template."""
        return [self.template.replace("{}", text) for text in self.texts]

    @property
    def hash(self) -> str:
        """Of the strings, their order and the template, which fix the embeddings; 16 hexadecimal digits."""
        payload = json.dumps([self.template, *self.texts], ensure_ascii=False)
        return hashlib.sha256(payload.encode()).hexdigest()[:16]

    def index(self, text: str) -> int:
        """Number of a concept; an unknown one raises a ValueError with the nearest spellings."""
        places = self.__dict__.get("_places")
        if places is None:
            places = {c: i for i, c in enumerate(self.texts)}
            object.__setattr__(self, "_places", places)
        if text not in places:
            import difflib

            near = difflib.get_close_matches(text, self.texts, 3)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise ValueError(f"{text!r} is not in the vocabulary {self.name!r} of {len(self)} concepts{hint}.")
        return places[text]

    def children(self) -> dict[str, list[str]]:
        """Every concept that has narrower ones, with them; the top of the hierarchy is under ''."""
        found: dict[str, list[str]] = {}
        for concept in self.concepts:
            found.setdefault(concept.parent, []).append(concept.text)
        return found

    def ancestors(self, text: str) -> list[str]:
        """More general concepts of one, nearest first."""
        chain: list[str] = []
        parent = self[self.index(text)].parent
        while parent and parent not in chain:
            chain.append(parent)
            parent = self[self.index(parent)].parent
        return chain

    def keep(self, wanted: Iterable[int]) -> Vocabulary:
        """The concepts with these numbers, in that order; a parent that is left out is replaced by its own parent."""
        wanted = list(wanted)
        texts = {self[i].text for i in wanted}

        def nearest(concept: Concept) -> str:
            return next((a for a in self.ancestors(concept.text) if a in texts), "") if concept.parent else ""

        return replace(self, concepts=tuple(replace(self[i], parent=nearest(self[i])) for i in wanted))

    def head(self, n: int) -> Vocabulary:
        """The `n` most frequent concepts, n >= 1."""
        check_size(n)
        return self.keep(range(min(n, len(self))))

    def of_words(self, n: int) -> Vocabulary:
        """Concepts of exactly `n` words."""
        return self.keep(i for i, c in enumerate(self.concepts) if len(c.text.split()) == n)

    def without(self, tag: str) -> Vocabulary:
        """Concepts that do not carry a tag, such as "sensitive"."""
        return self.keep(i for i, c in enumerate(self.concepts) if tag not in c.tags)

    def save(self, path: str | Path) -> Path:
        """Write as JSON lines: a header, then a concept a line, most frequent first. Returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"vlsae_vocabulary": FORMAT, "name": self.name, "template": self.template, "n": len(self),
                  "provenance": self.provenance}  # fmt: skip
        rows = ({k: v for k, v in asdict(c).items() if v not in (None, (), "")} for c in self.concepts)
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for row in (header, *rows):
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        return path

    @classmethod
    def load(cls, source: str | Path | Sequence[str] | Vocabulary, size: int | None = None) -> Vocabulary:
        """Open a vocabulary by name or path.

        Args:
            source: "concepts-en" or "tiny" (built in), "laion", "laion_bigrams" or "mscoco" (SpLiCE's published
                lists), a file written by `save`, a text file with one concept a line (SpLiCE's own files are
                recognised by name and read from rare to frequent), or the strings themselves.
            size: keep the most frequent ones only; all where None.

        Raises:
            ValueError: for an unknown name, a size below 1, or a file that is not what it should be.
            OSError: for a missing file, or a published list that is neither on disk nor to be had.
        """
        from vlsae.splice.published import PUBLISHED, load_published, read_lines

        if isinstance(source, Vocabulary):
            found = source
        elif not isinstance(source, (str, Path)):
            found = cls(tuple(source))
        elif str(source) == "tiny":
            found = tiny_vocabulary()
        elif str(source) in PUBLISHED:
            return load_published(str(source), size)
        elif (BUILT_IN / f"{source}.jsonl").exists():
            found = _read_json_lines(BUILT_IN / f"{source}.jsonl")
        elif Path(source).is_file():
            if Path(source).suffix != ".jsonl":
                return read_lines(Path(source), size)
            found = _read_json_lines(Path(source))
        elif re.search(r"[/\\.]", str(source)):
            raise FileNotFoundError(f"There is no vocabulary file {source}.")
        else:
            built_in = sorted(p.stem for p in BUILT_IN.glob("*.jsonl"))
            names = ", ".join([*built_in, "tiny", *PUBLISHED])
            raise ValueError(f"Unknown vocabulary {str(source)!r}; give one of {names}, or the path of a file.")
        return found if size is None else found.head(size)


def check_size(n: int | None) -> None:
    """Refuse a number of concepts below 1, such as the -1 that stands for all of them in SpLiCE's own code."""
    if n is not None and n < 1:
        raise ValueError(f"size={n}; give at least 1, or None for the whole vocabulary.")


def _read_json_lines(path: Path) -> Vocabulary:
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
            rows = [json.loads(line) for line in file]
        if header["vlsae_vocabulary"] != FORMAT:
            raise ValueError(f"{path} has format {header['vlsae_vocabulary']}; this version reads {FORMAT}.")
        if len(rows) != header["n"]:
            raise ValueError(f"{path} announces {header['n']} concepts and holds {len(rows)}; it was cut off.")
        concepts = tuple(
            Concept(r["text"], r.get("count"), tuple(r.get("tags", ())), r.get("parent", "")) for r in rows
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no vocabulary file of vlsae ({error}); write one with `vlsae vocab build`."
        ) from error
    return Vocabulary(concepts, header["name"], header["template"], header["provenance"])


def tiny_vocabulary() -> Vocabulary:
    """The concept words of the embedded world: objects, groups, colours, sizes, backgrounds and textures."""
    from vlsae.world import concepts
    from vlsae.world.icons import icons

    made: dict[str, Concept] = {}
    for kind, words in concepts().items():
        for word in words if kind != "font" else ():
            parent = icons()[word].group if kind == "object" else ""
            made.setdefault(word, Concept(word, None, (kind,), parent))
    return Vocabulary(tuple(made.values()), "tiny", provenance={"source": "vlsae.world.concepts()"})
