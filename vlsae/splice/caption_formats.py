"""The kinds of caption files: each is a function from a path to captions, which notes damage and goes on."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

log = logging.getLogger("vlsae")
COLUMNS = ("caption", "text", "title", "alt_text", "alt", "description", "sentence", "prompt")
VERDICTS = ("nsfw", "punsafe")
BLOCK = 1 << 20  # bytes that are read at once; also the longest line, and the largest member of a shard
LONGEST = 1 << 16  # characters of a caption: thousands of them are in memory at once
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


class Caption(NamedTuple):
    """A caption, and the verdict on its image that the data set came with ("" for none).

    LAION-400M has "UNLIKELY", "UNSURE" or "NSFW", later sets the probability of being unsafe.
    """

    text: str
    nsfw: str = ""


@dataclass
class Notes:
    """What went wrong while reading.

    Attributes:
        damaged: rows that could not be read, in all files.
        cut: files that end too early, or are no files of their kind.
    """

    damaged: int = 0
    cut: list[str] = field(default_factory=list)

    def warn(self) -> None:
        """One warning a kind of damage, if there was any."""
        if self.damaged:
            log.warning(
                "%s damaged rows were skipped (not UTF-8, broken, far too long, or without a caption).",
                f"{self.damaged:,}",
            )
        if self.cut:
            log.warning("Cut off or damaged: %s. What could be read of them was kept.", ", ".join(self.cut))


def _pick(names: Iterable[str], column: str | None, path: Path) -> tuple[str, str]:
    """The columns of the caption and of the verdict ("" without one)."""
    names = [str(name) for name in names]
    by_name = {name.strip().lower(): name for name in reversed(names)}
    verdict = next((by_name[v] for v in VERDICTS if v in by_name), "")
    if column is not None and column in names:
        return column, verdict
    caption = next((by_name[c] for c in COLUMNS if c in by_name), "") if column is None else ""
    if not caption:
        wanted = repr(column) if column is not None else f"any of {', '.join(COLUMNS)}"
        raise ValueError(f"{path} has the columns {', '.join(names)}, not {wanted}; name the captions' with column=.")
    return caption, verdict


def _made(text: Any, verdict: Any, notes: Notes) -> Iterator[Caption]:
    """One caption, or none and a note; a blank caption is neither."""
    if not isinstance(text, str) or len(text) > LONGEST:
        notes.damaged += 1
    elif text.strip():
        yield Caption(text, "" if verdict is None else str(verdict))


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _lines(path: Path, notes: Notes) -> Iterator[str]:
    """Lines with their ends; a line of more than 1 MiB counts as damaged, so that memory stays bounded."""
    with _open(path) as file:
        rest, first = b"", True
        try:
            while block := file.read1(BLOCK):  # `read` would lose what came before a cut
                if first and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise ValueError(f"{path} is in UTF-16; save it as UTF-8.")
                *lines, rest = (rest + block.removeprefix(b"\xef\xbb\xbf" if first else b"")).split(b"\n")
                first = False
                yield from _decoded(lines, b"\n", notes)
                if len(rest) > BLOCK:  # its end is then taken for one more damaged line
                    rest = b"\xff"
        except DAMAGE:
            notes.cut.append(path.name)
            rest = b""  # half a caption
        yield from _decoded([rest] if rest else [], b"", notes)


def _decoded(lines: list[bytes], end: bytes, notes: Notes) -> Iterator[str]:
    for line in lines:
        try:
            yield (line + end).decode()
        except UnicodeDecodeError:
            notes.damaged += 1


def _text(path: Path, column: str | None, notes: Notes) -> Iterator[Caption]:
    for line in _lines(path, notes):
        yield from _made(line.strip(), None, notes)


def _table(path: Path, column: str | None, notes: Notes, delimiter: str = ",") -> Iterator[Caption]:
    rows = csv.reader(_lines(path, notes), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:  # a field without an end, or a zero byte
            notes.damaged += 1
            continue
        if header is None:
            header = row
            place, verdict = (header.index(c) if c else None for c in _pick(header, column, path))
        elif row:
            given = row[verdict] if verdict is not None and verdict < len(row) else None
            yield from _made(row[place] if place < len(row) else None, given, notes)


def _tabbed(path: Path, column: str | None, notes: Notes) -> Iterator[Caption]:
    return _table(path, column, notes, "\t")


def _json_lines(path: Path, column: str | None, notes: Notes) -> Iterator[Caption]:
    names: tuple[str, str] | None = None
    for line in _lines(path, notes):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            notes.damaged += 1
            continue
        if isinstance(row, dict):
            names = names or _pick(row, column, path)
            yield from _made(row.get(names[0]), row.get(names[1]), notes)
        else:
            yield from _made(row, None, notes)


def _parquet(path: Path, column: str | None, notes: Notes) -> Iterator[Caption]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"Reading {path} needs pyarrow; install it with: pip install 'vlsae[parquet]'") from error
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            caption, verdict = _pick(file.schema_arrow.names, column, path)
            columns = [caption, verdict] if verdict else [caption]
            for batch in file.iter_batches(8192, columns=columns):
                found = batch.column(caption).to_pylist()
                for row in zip(found, batch.column(verdict).to_pylist() if verdict else [None] * len(found)):
                    yield from _made(*row, notes)
    except (FileNotFoundError, PermissionError):
        raise
    except (pyarrow.ArrowInvalid, OSError):
        notes.cut.append(path.name)


def _shard(path: Path, column: str | None, notes: Notes) -> Iterator[Caption]:
    """Captions of a WebDataset shard: one a sample, though img2dataset writes it to the .txt and to the .json."""
    names: tuple[str, str] | None = None
    for sample in _samples(path, notes):
        try:
            text = sample["txt"].decode("utf-8-sig") if "txt" in sample else None
            row = json.loads(sample.get("json", b"{}"))
        except ValueError:
            notes.damaged += 1
            continue
        verdict = None
        if isinstance(row, dict) and row:
            if text is None or column is not None:
                names = names or _pick(row, column, path)
                text = row.get(names[0])
            verdict = next((row[name] for name in row if name.lower() in VERDICTS), None)
        yield from _made(text, verdict, notes)


class _Member(tarfile.TarInfo):
    """Takes nothing but the block of zeros for the end of an archive; `tarfile` stops silently at anything odd."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error


def _samples(path: Path, notes: Notes) -> Iterator[dict[str, bytes]]:
    """The .txt and .json of every sample, which are neighbours with one name."""
    key, sample = "", {}
    with path.open("rb") as raw:
        try:
            mode = "r:" if path.name.lower().endswith(".tar") else "r:gz"
            with tarfile.open(fileobj=raw, mode=mode, tarinfo=_Member) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep them all
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    if f"{folder}/{stem}" != key and sample:
                        yield sample
                        sample = {}
                    key = f"{folder}/{stem}"
                    if member.isfile() and kind.lower() in ("txt", "json"):
                        sample[kind.lower()] = tar.extractfile(member).read(BLOCK)
        except (*DAMAGE, OSError):
            notes.cut.append(path.name)
    if sample:
        yield sample


Reader = Callable[[Path, "str | None", Notes], Iterator[Caption]]
READERS: dict[str, Reader] = {".txt": _text, ".csv": _table, ".tsv": _tabbed, ".jsonl": _json_lines, ".tar": _shard,
                              ".tgz": _shard, ".parquet": _parquet}  # fmt: skip


def reader_of(path: Path) -> Reader | None:
    """What reads a file of this name; None for an unknown suffix."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    return None if name.endswith(".parquet.gz") else READERS.get(suffix)
