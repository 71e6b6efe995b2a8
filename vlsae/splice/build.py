"""A concept vocabulary from captions, as SpLiCE made its own from LAION-400M."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vlsae.splice.caption_formats import reader_of
from vlsae.splice.captions import Caption, caption_files, no_captions
from vlsae.splice.counting import CAPACITY, PhraseCounter
from vlsae.splice.pruning import Pruner
from vlsae.splice.safety import is_sensitive, is_unsafe
from vlsae.splice.tally import Settings, Tally, count_captions, count_files
from vlsae.splice.vocabulary import Concept, Vocabulary

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone

log = logging.getLogger("vlsae")
BLOCK = 1024
MOST_SOURCES = 100


def build_vocabulary(
    captions: str | Path | Iterable[str | Caption | Path],
    model: Backbone | str | None = None,
    *,
    unigrams: int = 10_000,
    bigrams: int = 5_000,
    safety: str = "default",
    similarity: float = 0.9,
    min_count: int = 2,
    name: str = "captions",
    column: str | None = None,
    capacity: int = CAPACITY,
    keep_stop_words: bool = False,
    work: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Vocabulary:
    """The most frequent one- and two-word phrases of captions that are safe and not alike: SpLiCE's recipe.

    Captions that the safety tier rejects are dropped, phrases are counted and walked from the most frequent to the
    least (equal counts: words before pairs, then by letters). Left out are unsafe phrases and, where a model is given,
    each with a cosine above `similarity` to a kept, more frequent one, and pairs whose cosine to the normalised mean
    of their words' embeddings is; until `unigrams` and `bigrams` are full. Counts are exact up to `2 * capacity`
    phrases of a kind and too low by at most `total / (capacity + 1)` beyond. The order of captions and files does not
    matter as long as the counts are exact. SpLiCE's published lists also hold stop words: `keep_stop_words`.

    Args:
        captions: a path or paths of caption files or folders (see `iter_captions`), or the captions: strings, or
            `Caption`s with a verdict. Strings in a list are captions, so give `Path`s there.
        model: a `Backbone` with a text tower or its name, in whose space similar concepts are left out; None: none are.
        unigrams, bigrams: concepts wanted of one word and of two, 0 or more.
        safety: "strict", "default" or "none": which captions and phrases are dropped (`vlsae.splice.safety`).
        similarity: cosine in -1 ... 1 above which the less frequent concept goes.
        min_count: phrases seen less often are left out, 1 or more.
        name: of the vocabulary.
        column: caption column of the files, found by its usual names where not given.
        capacity: phrases of a kind in memory, see `PhraseCounter`.
        keep_stop_words: take "of", "the" and so on for concepts.
        work: folder in which each file's counts are kept, so that a second call does not read it again.
        workers: processes that count files, see `count_files`.
        progress: show progress bars.

    Returns:
        The vocabulary, most frequent first, with tags "two-word" and "sensitive" and its full `provenance`.

    Raises:
        ValueError: for settings out of range, a model without a text tower, or when no phrase is left.
        OSError: for a path that does not exist.

    Example:
        >>> captions = ["a red dog", "a dog in the snow", "red dog, red owl", "the owl"]
        >>> words = build_vocabulary(captions, progress=False)
        >>> [(c.text, c.count) for c in words]
        [('dog', 3), ('red', 3), ('owl', 2), ('red dog', 2)]
    """
    _check(unigrams, bigrams, min_count)
    model = _opened(model)
    embed = None if model is None else lambda texts: model.encode_text(list(texts)).cpu().numpy()
    pruner = Pruner(embed, (unigrams, bigrams), similarity)
    is_unsafe("", safety)  # an unknown tier is an error before hours of counting
    settings = Settings(column, safety, capacity, keep_stop_words)
    tally = _count(captions, settings, Path(work) if work is not None else None, workers, progress)
    concepts, unsafe = _walk(tally.counter, pruner, safety, min_count, progress)
    if not concepts:
        raise ValueError(
            f"No phrase of {tally.read:,} captions was seen {min_count} times and is safe in the tier {safety!r}; "
            "give more captions or a lower min_count."
        )
    if any(pruner.left):
        log.warning(
            "The captions gave %d of %d words and %d of %d two-word phrases; more captions or a lower min_count give more.",
            unigrams - pruner.left[0], unigrams, bigrams - pruner.left[1], bigrams,
        )  # fmt: skip
    removed = {"unsafe": unsafe, "similar": pruner.similar, "explained_by_words": pruner.explained}
    wanted = {"unigrams": unigrams, "bigrams": bigrams, "safety": safety, "similarity": similarity,
              "min_count": min_count, "keep_stop_words": keep_stop_words}  # fmt: skip
    about = _provenance(tally, concepts, model) | {"removed_phrases": removed, "settings": wanted}
    return Vocabulary(tuple(concepts), name, provenance=about)


def _check(unigrams: int, bigrams: int, min_count: int) -> None:
    if min(unigrams, bigrams) < 0 or unigrams + bigrams == 0:
        raise ValueError(f"{unigrams} words and {bigrams} pairs were asked for; give 0 or more, and some of one.")
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; it is a number of occurrences, 1 or more.")


def _opened(model: Backbone | str | None) -> Backbone | None:
    if isinstance(model, str):
        from vlsae.backbones.load import load_model

        model = load_model(model)
    if model is not None and not model.has_text:
        raise ValueError(f"{model.spec} has no text tower; give a CLIP or SigLIP model, or None to prune nothing.")
    return model


def _count(captions: Any, settings: Settings, work: Path | None, workers: int, progress: bool) -> Tally:
    if isinstance(captions, (str, Path)):
        captions = [Path(captions)]
    stream = iter(captions)
    first = next(stream, None)
    if isinstance(first, Path):
        files = caption_files([first, *stream])
        tally = count_files(files, settings, work, workers, progress)
        tally.notes.warn()
        if not tally.read:
            raise no_captions(files)
        return tally
    if first is None:
        raise ValueError("There are no captions; give strings, or paths of caption files.")
    if isinstance(first, str) and reader_of(Path(first)) and os.path.exists(first):
        raise ValueError(f"{first!r} would be a caption, but a file has that name; give paths in a list as Path.")
    with tqdm(desc="count", unit=" captions", unit_scale=True, disable=not progress) as bar:
        return count_captions(chain([first], stream), settings, tick=bar.update)


def _walk(
    counter: PhraseCounter, pruner: Pruner, safety: str, min_count: int, progress: bool
) -> tuple[list[Concept], int]:
    """Concepts that are kept, and the number of unsafe ones met on the way."""
    rows = sorted((-n, p.count(" "), p) for kind in counter.kinds for p, n in kind.items() if n >= min_count)
    counts = {}
    unsafe = 0

    def candidates() -> Iterator[str]:
        nonlocal unsafe
        for n, _, phrase in rows:
            if not pruner.is_open(phrase):
                continue
            if is_unsafe(phrase, safety):
                unsafe += 1
                continue
            counts[phrase] = -n
            yield phrase

    source, concepts = candidates(), []
    with tqdm(total=sum(pruner.left), desc="pick", unit=" concepts", disable=not progress) as bar:
        # Not more at once than are still wanted: embedding is what takes the time with a large model.
        while any(pruner.left) and (block := list(islice(source, min(BLOCK, max(64, sum(pruner.left)))))):
            kept = [text for text, taken in zip(block, pruner.offer(block)) if taken]
            concepts += [Concept(text, counts[text], _tags(text)) for text in kept]
            counts.clear()
            bar.update(len(kept))
    return concepts, unsafe


def _tags(text: str) -> tuple[str, ...]:
    return ("two-word",) * (" " in text) + ("sensitive",) * is_sensitive(text)


def _sources(sources: list[dict]) -> list[dict]:
    """The sources, or one line for many: thousands of shards would drown the words."""
    if len(sources) <= MOST_SOURCES:
        return sources
    together = hashlib.sha256("".join(s["sha256"] for s in sources).encode()).hexdigest()
    name = f"{len(sources)} files, {sources[0]['name']} to {sources[-1]['name']}"
    return [{"name": name, "captions": sum(s["captions"] for s in sources), "sha256_of_sha256s": together}]


def _provenance(tally: Tally, concepts: list[Concept], model: Backbone | None) -> dict[str, Any]:
    from vlsae import __version__

    kept = {c.text for c in concepts}
    counting = {}
    for kind, hitters in zip(("words", "pairs"), tally.counter.kinds):
        uncertain = hitters.ranking().uncertain if hitters.error else frozenset()
        counting[kind] = {"total": hitters.total, "held": len(hitters), "error": hitters.error,
                          "error_bound": hitters.bound, "uncertain_order": len(kept & uncertain)}  # fmt: skip
    versions = {"vlsae": __version__, "python": platform.python_version(), "numpy": np.__version__,
                "unicode": unicodedata.unidata_version}  # fmt: skip
    if model is not None:
        import torch

        versions["torch"] = torch.__version__
    return {
        "source": "vlsae.splice.build_vocabulary",
        "files": _sources(tally.sources),
        "captions": {"read": tally.read, "dropped_by_verdict": tally.by_verdict, "dropped_by_words": tally.by_words,
                     "damaged": tally.notes.damaged, "cut_off": tally.notes.cut},
        "counting": {"capacity": tally.counter.words.capacity, **counting},
        "model": None if model is None else {"spec": model.spec, "weight_hash": model.weight_hash},
        "versions": versions,
    }  # fmt: skip
