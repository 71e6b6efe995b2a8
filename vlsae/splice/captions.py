"""Captions from files: lists, tables, JSON lines, Parquet and WebDataset shards, one after the other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from vlsae.splice.caption_formats import READERS, Caption, Notes, reader_of

__all__ = ["Caption", "Notes", "caption_files", "iter_captions", "no_captions", "nsfw_verdict"]
# Probabilities from which a caption goes: "strict" is what Stable Diffusion 2.0 was trained with.
PUNSAFE = {"strict": 0.1, "default": 0.5}


@lru_cache(maxsize=4096)
def nsfw_verdict(verdict: str, tier: str = "default") -> bool:
    """Whether a data set's own verdict drops a sample.

    Args:
        verdict: "UNLIKELY", "UNSURE", "NSFW", a truth value, or a probability; "" and "nan" for none.
        tier: "default" drops NSFW and probabilities from 0.5, "strict" also everything unsure and from 0.1, "none"
            drops nothing. A verdict in other words counts as unsure.

    Raises:
        ValueError: for an unknown tier.

    Example:
        >>> [nsfw_verdict(v) for v in ("UNLIKELY", "UNSURE", "NSFW", "0.7", "")]
        [False, False, True, True, False]
    """
    if tier not in (*PUNSAFE, "none"):
        raise ValueError(f"Unknown safety tier {tier!r}; give strict, default or none.")
    word = verdict.strip().upper()
    if tier == "none" or word in ("", "NAN", "NONE", "NULL", "UNLIKELY", "SFW", "FALSE", "NO"):
        return False
    if word in ("NSFW", "TRUE", "YES"):
        return True
    try:
        probability = float(word)
    except ValueError:
        return tier == "strict"
    return not math.isnan(probability) and probability >= PUNSAFE[tier]


def caption_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The caption files among files and folders, each once; folders are walked in sorted order.

    Where a folder holds a .tar and a .parquet of one name, as img2dataset leaves them, the .tar is taken.

    Raises:
        ValueError: for a file with an unknown suffix, or where there is no caption file.
        FileNotFoundError: for a path that does not exist.
    """
    known = f"{', '.join(READERS)}, or with .gz after it (not .parquet)"
    found: dict[Path, None] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            inside = [Path(root) / name for root, _, names in os.walk(path) for name in names if name[0] != "."]
            shards = {p.with_suffix("") for p in inside if p.suffix == ".tar"}
            twice = {p for p in inside if p.suffix == ".parquet" and p.with_suffix("") in shards}
            found |= dict.fromkeys(sorted(p for p in inside if reader_of(p) and p not in twice))
        elif not path.exists():
            raise FileNotFoundError(f"There is no caption file or folder {path}.")
        elif reader_of(path) is None:
            raise ValueError(f"{path} is no kind of caption file that is known; give {known}.")
        else:
            found[path] = None
    if not found:
        raise ValueError(f"There are no caption files in {paths}; give files that end in {known}.")
    return list(found)


def iter_captions(paths: str | Path | Iterable[str | Path], column: str | None = None) -> Iterator[Caption]:
    """Captions of files, in order and in constant memory.

    Args:
        paths: files or folders: .txt (a caption a line), .csv and .tsv with a header, .jsonl (an object or a string a
            line), .parquet, and WebDataset shards .tar with members .txt or .json; all but .parquet also with .gz.
        column: name of the caption column or field; otherwise the first of caption, text, title, alt_text, alt,
            description, sentence and prompt, in any case.

    Returns:
        An iterator of `Caption`, with the verdict of a column "NSFW" or "punsafe". Damaged rows are skipped, and files
        that end too early are read as far as they go; a warning at the end says so.

    Raises:
        ValueError: for an unknown suffix or column, a missing pyarrow, or where there is no caption at all.
        FileNotFoundError: for a path that does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("caption,NSFW\\na dog,UNLIKELY\\n")
        ...     list(iter_captions(folder))
        [Caption(text='a dog', nsfw='UNLIKELY')]
    """
    files = caption_files(paths)

    def read() -> Iterator[Caption]:
        notes, n = Notes(), 0
        for path in files:
            for caption in reader_of(path)(path, column, notes):
                n += 1
                yield caption
        notes.warn()
        if not n:
            raise no_captions(files)

    return read()


def no_captions(files: list[Path]) -> ValueError:
    """The error of files without a single caption."""
    names = ", ".join(str(f) for f in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    return ValueError(f"There is not one caption in {names}; give files with captions, or name their column.")
