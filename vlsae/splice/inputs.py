"""From anything that has an embedding to unit embeddings: images, texts, arrays, and stores of pooled activations."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from vlsae.activations.reader import ActivationStore
from vlsae.images.decode import UnreadableImage
from vlsae.splice.embedding import unit

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone

log = logging.getLogger("vlsae")
BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings `[N, e]`, their modality, and name and class number (-1: none) of every sample."""

    embeddings: np.ndarray
    modality: str
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.embeddings)


def embed(model: Backbone, inputs, *, progress: bool = True) -> Embedded:
    """Embed images or texts, or take embeddings as they are.

    Args:
        model: a `Backbone`.
        inputs: an image, a scene or several; `load_images(...)`; a string or several; embeddings `[N, e]`, array or
            tensor of any norm, counted as images; or an `ActivationStore` of site "vision.pooled".
        progress: show a bar when there is more than one batch.

    Raises:
        ValueError: for nothing, embeddings of another width or not finite, or another model's store. Images that cannot
            be read are named in a warning and left out, unless all are.
    """
    if isinstance(inputs, ActivationStore):
        return _of_store(model, inputs)
    if isinstance(inputs, str) or hasattr(inputs, "image") or hasattr(inputs, "convert"):
        inputs = [inputs]
    if hasattr(inputs, "detach"):
        inputs = inputs.detach().float().cpu().numpy()
    if isinstance(inputs, np.ndarray):
        return _of_array(model, inputs)
    if len(inputs) == 0:
        raise ValueError("There is nothing to decompose; give at least one image, text or embedding.")
    if isinstance(inputs[0], str):
        return _of_texts(model, list(inputs), progress)
    return _of_images(model, inputs, progress)


def _plain(embeddings: np.ndarray, modality: str, names) -> Embedded:
    return Embedded(embeddings, modality, tuple(names), np.full(len(embeddings), -1))


def _of_array(model: Backbone, x: np.ndarray) -> Embedded:
    if x.ndim != 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"Embeddings are {x.dtype} of shape {x.shape}; give floating [N, e] with N at least 1.")
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise ValueError(f"Embedding {bad} holds NaN or infinite values; leave it out.")
    return _plain(unit(x.astype(np.float32)), "image", (f"#{i}" for i in range(len(x))))


def _of_store(model: Backbone, store: ActivationStore) -> Embedded:
    if str(store.site) != "vision.pooled":
        raise ValueError(f"The store holds {store.site}; SpLiCE decomposes embeddings: extract the site vision.pooled.")
    if store.config.weight_hash != model.weight_hash:
        raise ValueError(f"The store was extracted with {store.config.model}, not with {model.spec}; load that model.")
    x = store.images(0, store.n_images)[:, 0].numpy()
    return Embedded(unit(x), "image", tuple(store.names), np.asarray(store.labels))


def _of_texts(model: Backbone, texts: list[str], progress: bool) -> Embedded:
    parts = []
    with tqdm(total=len(texts), desc="embed", unit=" texts", disable=not progress or len(texts) <= BATCH) as bar:
        for start in range(0, len(texts), BATCH):
            parts.append(model.encode_text(texts[start : start + BATCH]).cpu().numpy())
            bar.update(len(parts[-1]))
    return _plain(np.concatenate(parts), "text", texts)


def _of_images(model: Backbone, images, progress: bool) -> Embedded:
    parts, names, labels, unreadable = [], [], [], []
    batch: list = []

    def flush() -> None:
        if batch:
            parts.append(model.encode_image(batch).cpu().numpy())
            batch.clear()

    for i in tqdm(range(len(images)), desc="embed", unit=" images", disable=not progress or len(images) <= BATCH):
        try:
            image = images[i]
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        batch.append(image)
        names.append(getattr(image, "name", None) or f"#{i}")
        label = getattr(image, "label", -1)
        labels.append(label if isinstance(label, int) else -1)
        if len(batch) == BATCH:
            flush()
    flush()
    if not parts:
        raise ValueError(f"None of {len(images)} images can be read; the first: {unreadable[0]}")
    if unreadable:
        log.warning("%d of %d images are left out; the first: %s", len(unreadable), len(images), unreadable[0])
    return Embedded(np.concatenate(parts), "image", tuple(names), np.asarray(labels))
