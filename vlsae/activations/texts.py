"""Where texts come from: a file with one a line, or a sequence of strings, as the sequence that `extract` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextSample:
    """One text with its content id and class number; its name is the text itself."""

    name: str
    id: str
    label: int = -1
    size: tuple[int, int] = (0, 0)  # a text has no pixels

    @property
    def content(self) -> str:
        """What the model is given."""
        return self.name


class TextSource(Sequence):
    """A sequence of `TextSample`s.

    Args:
        texts: the strings.
        spec: the file they came from.
    """

    class_names: Sequence[str] = ()

    def __init__(self, texts: Sequence[str], spec: str = ""):
        self.texts, self.spec = texts, spec

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> TextSample:
        text = self.texts[index]
        return TextSample(text, text_id(text))


def text_id(text: str) -> str:
    """The identity of a text: BLAKE2 of its UTF-8 bytes, 32 hexadecimal digits.

    Example:
        >>> text_id("a red cat") == text_id("a red cat "), len(text_id(""))
        (False, 32)
    """
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_texts(source: Any) -> TextSource:
    """Open texts as one sequence of samples.

    Args:
        source: a `.txt` file with one text a line (blanks around it and empty lines are dropped), a sequence of strings, or
            a `TextSource`.

    Returns:
        A `TextSource`.

    Raises:
        ValueError: for a path that is no such file, an empty source, or entries that are no strings.

    Example:
        >>> texts = load_texts(["a red cat", "a blue bus"])
        >>> len(texts), texts[1].name, texts[1].label
        (2, 'a blue bus', -1)
    """
    if isinstance(source, TextSource):
        return source
    if isinstance(source, (str, Path)):
        return TextSource(_lines(Path(source)), str(source))
    texts = list(source) if isinstance(source, Sequence) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"A {type(source).__name__} was given where texts are read; give a .txt with one text a line, or a list of at "
            "least one string, none of them empty."
        )
    return TextSource(texts)


def _lines(path: Path) -> list[str]:
    if path.suffix.lower() != ".txt" or not path.is_file():
        raise ValueError(f"{path} holds no texts; give a .txt file with one text a line.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    if not any(lines):
        raise ValueError(f"{path} has no lines with text; give one text a line.")
    return [line for line in lines if line]
