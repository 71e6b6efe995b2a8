"""Count the phrases of captions: a stream in this process, or files in several, each file once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from vlsae.splice.caption_formats import reader_of
from vlsae.splice.captions import Caption, Notes, nsfw_verdict
from vlsae.splice.counting import BATCH, CAPACITY, PhraseCounter
from vlsae.splice.safety import nsfw_caption

FORMAT = 1
Tick = Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """What counts depend on: the caption column, the safety tier, and those of `PhraseCounter`."""

    column: str | None = None
    safety: str = "default"
    capacity: int = CAPACITY
    keep_stop_words: bool = False

    def counter(self) -> PhraseCounter:
        """An empty counter."""
        return PhraseCounter(self.capacity, self.keep_stop_words)


@dataclass
class Tally:
    """Phrases that were counted, and of what.

    Attributes:
        counter: the counts.
        read: captions read, those dropped included.
        by_verdict: captions dropped for the verdict of their data set.
        by_words: captions dropped for an unsafe word.
        notes: damage.
        sources: name, number of captions and SHA-256 of the captions (each with a line end) of every source.
    """

    counter: PhraseCounter
    read: int = 0
    by_verdict: int = 0
    by_words: int = 0
    notes: Notes = field(default_factory=Notes)
    sources: list[dict] = field(default_factory=list)

    def merge(self, other: Tally) -> None:
        """Add the captions of another tally; the errors of the counts add up."""
        self.counter.merge(other.counter)
        self.read += other.read
        self.by_verdict += other.by_verdict
        self.by_words += other.by_words
        self.notes.damaged += other.notes.damaged
        self.notes.cut += other.notes.cut
        self.sources += other.sources

    def save(self, path: Path) -> None:
        """Write in one step."""
        self.counter.save(path, {**vars(self), "counter": None, "notes": vars(self.notes)})

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Read what `save` wrote; a damaged file is a ValueError."""
        counter, facts = PhraseCounter.load(path)
        return cls(**{**facts, "counter": counter, "notes": Notes(**facts["notes"])})


def _as_caption(item: object) -> Caption:
    if isinstance(item, Caption):
        return item
    if isinstance(item, str):
        return Caption(item)
    raise ValueError(f"A {type(item).__name__} is no caption; give strings or `Caption`s, or paths of caption files.")


def count_captions(
    captions: Iterable[str | Caption],
    settings: Settings | None = None,
    name: str = "captions",
    tick: Tick | None = None,
) -> Tally:
    """Count a stream of captions, without those that the safety tier drops.

    Args:
        captions: strings, or `Caption`s with a verdict.
        settings: what to count.
        name: of the source, in the result.
        tick: is called with the number of captions after each batch.

    Returns:
        A `Tally` with one source.

    Raises:
        ValueError: for something that is no caption, or an unknown safety tier.

    Example:
        >>> tally = count_captions(["a red dog", Caption("a dog", nsfw="NSFW")])
        >>> tally.read, tally.by_verdict, tally.counter.count("dog")
        (2, 1, 1)
    """
    settings = settings or Settings()
    tally, digest, tier = Tally(settings.counter()), hashlib.sha256(), settings.safety
    stream = map(_as_caption, captions)
    while batch := list(islice(stream, BATCH)):
        digest.update("".join(f"{c.text}\n" for c in batch).encode(errors="replace"))
        shown = [c.text for c in batch if not c.nsfw or not nsfw_verdict(c.nsfw, tier)]
        clean = [text for text in shown if not nsfw_caption(text, tier)] if tier != "none" else shown
        tally.counter.add(clean)
        tally.read += len(batch)
        tally.by_verdict += len(batch) - len(shown)
        tally.by_words += len(shown) - len(clean)
        if tick:
            tick(len(batch))
    tally.sources = [{"name": name, "captions": tally.read, "sha256": digest.hexdigest()}]
    return tally


def count_file(path: Path, settings: Settings, out: Path, tick: Tick | None = None) -> int:
    """Count one caption file into a file of counts. Returns the number of captions read."""
    notes = Notes()
    tally = count_captions(reader_of(path)(path, settings.column, notes), settings, path.name, tick)
    tally.notes = notes
    tally.save(out)
    return tally.read


def counts_name(path: Path, settings: Settings) -> str:
    """Name of the counts of a file as it is now: they are made anew when it, the settings or vlsae change."""
    from vlsae import __version__

    state = path.stat()
    facts = [FORMAT, __version__, str(path.resolve()), state.st_size, state.st_mtime_ns, asdict(settings)]
    return f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.counts.gz"


def count_files(
    files: Iterable[Path],
    settings: Settings | None = None,
    work: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Tally:
    """Count caption files; those whose counts lie in `work` already are not read again.

    Args:
        files: caption files. They are merged in sorted order, so that neither their order nor `workers` matters.
        settings: what to count.
        work: folder for the counts of each file, which make a second call continue; None for a temporary one.
        workers: processes, 1 or more, each with a counter of its own. A script that asks for more than one needs
            `if __name__ == "__main__":`, since they are spawned.
        progress: show a progress bar.

    Returns:
        The `Tally` of all files.

    Raises:
        ValueError: for a file without the caption column, or fewer than one worker.
        OSError: for a file that cannot be opened, or when a process was killed.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers were asked for; it takes 1 or more.")
    settings, files = settings or Settings(), sorted(set(files))
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(TemporaryDirectory(prefix="vlsae-counts-")))
        work.mkdir(parents=True, exist_ok=True)
        counts = {path: work / counts_name(path, settings) for path in files}
        waiting = [path for path in files if not counts[path].exists()]
        bar = stack.enter_context(tqdm(desc="count", unit=" captions", unit_scale=True, disable=not progress))
        for done, _ in enumerate(_count_all(waiting, settings, counts, workers, bar), len(files) - len(waiting) + 1):
            bar.set_postfix_str(f"{done} of {len(files)} files")
        total = Tally(settings.counter())
        for path in files:
            total.merge(_load(path, settings, counts[path]))
    return total


def _count_all(waiting: list[Path], settings: Settings, counts: dict, workers: int, bar: tqdm) -> Iterator[None]:
    if min(workers, len(waiting)) < 2:
        for path in waiting:
            yield count_file(path, settings, counts[path], bar.update)
        return
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(count_file, path, settings, counts[path]) for path in waiting]
        try:
            for future in as_completed(futures):
                bar.update(future.result())
                yield
        except BrokenProcessPool as error:
            raise OSError(
                f"A process that counted captions was ended, mostly for want of memory: {workers} workers with a "
                f"capacity of {settings.capacity:,} each; use fewer of one. Files counted so far are kept in `work`."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _load(path: Path, settings: Settings, counts: Path) -> Tally:
    try:
        return Tally.load(counts)
    except ValueError:  # damaged since it was written
        count_file(path, settings, counts)
        return Tally.load(counts)
