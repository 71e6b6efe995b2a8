"""From anything that has an embedding to unit embeddings: images, texts, arrays, and stores of pooled activations."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from vlsae.activations.reader import ActivationStore
from vlsae.images.decode import UnreadableImage
from vlsae.images.sources import ImageSource, load_images
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


def are_texts(inputs) -> bool:
    """Whether `embed` will take them for texts; no picture is decoded to find out."""
    if isinstance(inputs, (ImageSource, ActivationStore, np.ndarray)) or not hasattr(inputs, "__getitem__"):
        return False
    return isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], str))


def embed(model: Backbone, inputs, *, batch_size: int = BATCH, progress: bool = True) -> Embedded:
    """Embed images or texts, or take embeddings as they are.

    Args:
        model: a `Backbone`.
        inputs: an image, a scene or several; a `Path` or several; `load_images(...)`; a string or several, which are
            texts even where they name files; embeddings `[N, e]`, array or tensor of any norm, counted as images; or an
            `ActivationStore` of site "vision.pooled".
        batch_size: inputs a forward pass.
        progress: show a bar when there is more than one batch.

    Raises:
        ValueError: for nothing, embeddings that are zero or not finite, or another model's store. Images that cannot
            be read are named in a warning and left out, unless all are.
    """
    if isinstance(inputs, ActivationStore):
        return _of_store(model, inputs)
    if isinstance(inputs, (str, Path)) or hasattr(inputs, "image") or hasattr(inputs, "convert"):
        inputs = load_images(inputs) if isinstance(inputs, Path) else [inputs]
    if hasattr(inputs, "detach"):
        inputs = inputs.detach().float().cpu().numpy()
    if isinstance(inputs, np.ndarray):
        return _of_array(inputs)
    if len(inputs) == 0:
        raise ValueError("There is nothing to decompose; give at least one image, text or embedding.")
    if not isinstance(inputs, ImageSource) and getattr(inputs[0], "ndim", 3) == 1:
        raise ValueError("A list of vectors was given; stack embeddings to one array [N, e] (np.stack, torch.stack).")
    if are_texts(inputs):
        return _of_texts(model, list(inputs), batch_size, progress)
    return _of_images(model, load_images(inputs), batch_size, progress)


def _plain(embeddings: np.ndarray, modality: str, names) -> Embedded:
    return Embedded(embeddings, modality, tuple(names), np.full(len(embeddings), -1))


def _of_array(x: np.ndarray) -> Embedded:
    if x.ndim != 2 or not len(x) or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"Embeddings are {x.dtype} of shape {x.shape}; give floating [N, e] with N at least 1.")
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise ValueError(f"Embedding {bad} holds NaN or infinite values; leave it out.")
    x = x.astype(np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not norm.all():
        raise ValueError(f"Embedding {int(np.flatnonzero(norm == 0)[0])} is zero and has no direction; leave it out.")
    return _plain((x / norm).astype(np.float32), "image", (f"#{i}" for i in range(len(x))))


def _of_store(model: Backbone, store: ActivationStore) -> Embedded:
    if str(store.site) != "vision.pooled":
        raise ValueError(f"The store holds {store.site}; SpLiCE decomposes embeddings: extract the site vision.pooled.")
    if store.config.weight_hash != model.weight_hash:
        raise ValueError(f"The store was extracted with {store.config.model}, not with {model.spec}; load that model.")
    x = store.images(0, store.n_images)[:, 0].numpy()
    return Embedded(unit(x), "image", tuple(store.names), np.asarray(store.labels))


def _of_texts(model: Backbone, texts: list[str], batch_size: int, progress: bool) -> Embedded:
    if Path(texts[0]).suffix and Path(texts[0]).is_file():
        log.warning("%s is decomposed as a text; for the picture in that file give load_images(...).", texts[0])
    parts = []
    with tqdm(total=len(texts), desc="embed", unit=" texts", disable=not progress or len(texts) <= batch_size) as bar:
        for start in range(0, len(texts), batch_size):
            parts.append(model.encode_text(texts[start : start + batch_size]).cpu().numpy())
            bar.update(len(parts[-1]))
    return _plain(np.concatenate(parts), "text", texts)


def _of_images(model: Backbone, images: ImageSource, batch_size: int, progress: bool) -> Embedded:
    parts, names, labels, unreadable = [], [], [], []
    batch: list = []

    def flush() -> None:
        if batch:
            parts.append(model.encode_image(batch).cpu().numpy())
            batch.clear()

    for i in tqdm(range(len(images)), desc="embed", unit=" images", disable=not progress or len(images) <= batch_size):
        try:
            image = images[i]
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        batch.append(image)
        names.append(image.name)
        labels.append(image.label)
        if len(batch) == batch_size:
            flush()
    flush()
    if not parts:
        raise ValueError(f"None of {len(images)} images can be read; the first: {unreadable[0]}")
    if unreadable:
        log.warning("%d of %d images are left out; the first: %s", len(unreadable), len(images), unreadable[0])
    return Embedded(np.concatenate(parts), "image", tuple(names), np.asarray(labels))
