"""A vocabulary in the text space of a model: embeddings, their mean, and the centred dictionary."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from vlsae.atomic import replacing
from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.published import cache_folder
from vlsae.splice.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone

log = logging.getLogger("vlsae")
BATCH = 256


def unit(x: np.ndarray) -> np.ndarray:
    """Rows divided by their norm; rows of (numerically) zero norm become zero."""
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm > 1e-6, x / np.maximum(norm, 1e-30), 0.0).astype(x.dtype)


@dataclass(frozen=True)
class EmbeddedVocabulary:
    """Concepts as directions of a model's shared space (SpLiCE, section 3: `t_j`, `mu_con` and `C`).

    Attributes:
        vocabulary: the words.
        embeddings: unit text embeddings `t`, float32 `[K, e]`.
        spec, weight_hash: of the model that embedded them.
    """

    vocabulary: Vocabulary
    embeddings: np.ndarray
    spec: str
    weight_hash: str

    @cached_property
    def mean(self) -> np.ndarray:
        """`mu_con`, the mean embedding of the chosen concepts, `[e]`; it changes with the size of the vocabulary."""
        return self.embeddings.mean(0, dtype=np.float64).astype(np.float32)

    @cached_property
    def atoms(self) -> np.ndarray:
        """The centred dictionary, rows `C_j = sigma(t_j - mu_con)`, `[K, e]`."""
        return unit(self.embeddings - self.mean)

    @cached_property
    def prepared(self) -> PreparedDictionary:
        """`atoms` ready for the solvers."""
        return PreparedDictionary(self.atoms)

    @property
    def key(self) -> str:
        """Of the model's weights, the words, their order and the template: equal keys give comparable weights."""
        return f"{self.weight_hash}-{self.vocabulary.hash}"


def embed_vocabulary(
    model: Backbone, vocabulary: Vocabulary, *, cache: bool = True, progress: bool = True
) -> EmbeddedVocabulary:
    """Embed a vocabulary, or read it from the cache on disk.

    Args:
        model: with a text tower.
        vocabulary: of at least two concepts, since one alone has nothing left after centring.
        cache: keep the embeddings in the cache folder, under the weights, the words and the template.
        progress: show a progress bar.

    Raises:
        ValueError: for a model without a text tower, fewer than two concepts, or embeddings that are not finite.
    """
    if not model.has_text:
        raise ValueError(f"{model.spec} has no text tower; SpLiCE needs a CLIP or SigLIP model.")
    if len(vocabulary) < 2:
        raise ValueError(f"The vocabulary {vocabulary.name!r} has {len(vocabulary)} concepts; give at least 2.")
    place = cache_folder() / "vocabularies" / f"{model.weight_hash}-{vocabulary.hash}.npy"
    embeddings = _read(place, len(vocabulary)) if cache else None
    if embeddings is None:
        prompts, parts = vocabulary.prompts, []
        with tqdm(total=len(prompts), desc="embed vocabulary", unit=" concepts", disable=not progress) as bar:
            for start in range(0, len(prompts), BATCH):
                parts.append(model.encode_text(prompts[start : start + BATCH]).cpu().numpy())
                bar.update(len(parts[-1]))
        embeddings = np.concatenate(parts)
        if not np.isfinite(embeddings).all():
            bad = vocabulary.texts[int(np.flatnonzero(~np.isfinite(embeddings).all(1))[0])]
            raise ValueError(f"The embedding of {bad!r} is not finite; load the model in float32.")
        if cache:
            _write(place, embeddings)
    return EmbeddedVocabulary(vocabulary, embeddings, model.spec, model.weight_hash)


def _read(place, rows: int) -> np.ndarray | None:
    if not place.exists():
        return None
    try:
        with place.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
        if found.ndim != 2 or len(found) != rows or found.dtype != np.float32 or not np.isfinite(found).all():
            raise ValueError(f"{found.dtype} of shape {found.shape} for {rows} concepts, or values that are not finite")
    except (ValueError, OSError, EOFError) as error:
        log.warning("The cached embeddings %s cannot be read (%s); they are made again.", place.name, error)
        return None
    return found


def _write(place, embeddings: np.ndarray) -> None:
    """A full disk costs the cache, not the result."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial, partial.open("wb") as file:
            np.save(file, embeddings)
    except OSError as error:
        log.warning("The embeddings could not be cached at %s (%s); next time they are made again.", place, error)
