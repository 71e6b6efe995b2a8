"""The report of any run: what the latents of a dictionary are, on the user's own images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlsae import __version__
from vlsae.activations.format import is_pooled
from vlsae.activations.reader import ActivationStore
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.concepts.naming import LatentName, name_latents
from vlsae.concepts.statistics import LatentStatistics
from vlsae.dictionaries.base import Dictionary
from vlsae.images.sources import ImageSource, load_images
from vlsae.metrics.reconstruction import reconstruction
from vlsae.report.cards import latent_cards
from vlsae.report.figures import latent_scatter
from vlsae.report.page import cell, facts, figure, paragraph, section, table, tiles, write_page

N_CARDS = 24


def _ranked(statistics: LatentStatistics, names: Sequence[LatentName] | None, n: int) -> list[int]:
    """The latents worth a look first: alive in more than one image but not everywhere, the surest names before."""
    fit = (statistics.image_count >= min(3, statistics.n_images)) & (statistics.image_density <= 0.5)
    fit = fit if fit.any() else statistics.alive
    if names is not None:
        score = np.array([name.score for name in names])
    else:
        score = statistics.top_patch_values[:, 0] / np.nan_to_num(statistics.mean_activation, nan=np.inf)
    order = np.argsort(-np.where(fit, score, -np.inf), kind="stable")
    return [int(i) for i in order[:n] if fit[i]]


def _opener(store: ActivationStore, images: ImageSource) -> Callable[[int], Image.Image]:
    """Image `i` of the store from its source, after a look at whether it still is that image."""

    def open_image(i: int) -> Image.Image:
        sample = images[store.indices[i]]
        if sample.id != store.ids[i]:
            raise ValueError(f"{store.config.source or 'The source'} has changed since extraction: number "
                             f"{store.indices[i]} is {sample.name}, not {store.names[i]}. Extract again.")  # fmt: skip
        return sample.image

    return open_image


def _embed(model: Backbone, store: ActivationStore, open_image, chunk: int = 64) -> Tensor:
    """Image embeddings of a store's images, a few in memory at a time."""
    starts = range(0, store.n_images, chunk)
    return torch.cat(
        [model.encode_image([open_image(i) for i in range(s, min(s + chunk, store.n_images))]) for s in starts]
    )


def write_report(
    store: ActivationStore,
    dictionary: Dictionary,
    statistics: LatentStatistics,
    out: str | Path,
    *,
    model: Backbone | str | None = None,
    images: ImageSource | None = None,
    vocabulary: Sequence[str] | None = None,
    n_cards: int = N_CARDS,
) -> Path:
    """Write a self-contained page about a dictionary on a store.

    Args:
        store: the activations the statistics were taken on.
        dictionary: whose latents.
        statistics: from `latent_statistics` on the same store.
        out: the HTML file.
        model: the backbone; loaded by the store's name where None.
        images: the source of the store; opened again by its name where None.
        vocabulary: words to name latents with; none are given where None.
        n_cards: latents shown with reference images.

    Returns:
        The path of the page.

    Raises:
        ValueError: when statistics and store do not belong together, the store has no patches, or the images cannot be
            opened again.
    """
    if is_pooled(store.site):
        raise ValueError(
            f"{store.path} holds {store.site}, one vector each and no patches to draw; extract tokens, such as of "
            "vision.-2.resid_post, for a report, or read `statistics.top_images` beside `store.names`."
        )
    if statistics.n_images != store.n_images or statistics.n_latents != dictionary.n_latents:
        raise ValueError(
            f"The statistics are of {statistics.n_latents} latents on {statistics.n_images} images; the dictionary has "
            f"{dictionary.n_latents} and the store {store.n_images}. Run `vlsae stats` again."
        )
    model = load_model(model or store.config.model)
    if images is None:
        if not store.config.source:
            raise ValueError("The store does not know where its images are; pass images=...")
        images = load_images(store.config.source)
    if model.weight_hash != store.config.weight_hash:
        raise ValueError(f"{model.spec} has the weights {model.weight_hash}, but the store was made with "
                         f"{store.config.weight_hash}; give the model it was made with.")  # fmt: skip
    open_image = _opener(store, images)
    names = None
    if vocabulary and model.has_text:
        stored = store.embeddings()
        embeddings = _embed(model, store, open_image) if stored is None else stored
        names = name_latents(
            model, dictionary, vocabulary, mean=store.mean(), image_embeddings=embeddings, templates=("a photo of a {}",),
            top_images=statistics.top_images, top_values=statistics.top_image_values,
        )  # fmt: skip
    scores = reconstruction(dictionary, store)
    chosen = _ranked(statistics, names, n_cards)
    marked = {i: str(names[i]) for i in chosen[:6] if names[i].word} if names else {}
    named = (
        f"{sum(n.word is not None for n in names):,} have a name"
        if names
        else "no names without a vocabulary and a text tower"
    )
    return write_page(
        out,
        f"vlsae: {dictionary.family} dictionary of {model.spec}",
        f"<h1>{dictionary.n_latents:,} latents of {escape(model.spec)}</h1>",
        paragraph(f"On {store.n_images:,} images, at <code>{store.site}</code>.", "lead"),
        tiles(
            [
                (f"{scores['ev_centred'].value:.1%}", "of the variance is explained", f"n = {len(store):,} tokens"),
                (f"{scores['l0'].value:.1f}", "latents are active a token", f"of {dictionary.n_latents:,}"),
                (f"{scores['dead'].value:.1%}", "of the latents never fire here", "dead on these images"),
                (f"{int(statistics.alive.sum()):,}", "latents are alive", named),
            ]
        ),
        section(
            "Latents worth a look",
            paragraph("Above, the images that activate a latent most; below, where it is active."),
            latent_cards(model, dictionary, statistics, chosen, open_image, names, store=store),
        ),
        section(
            "Statistics of every latent",
            figure(
                latent_scatter(statistics, marked),
                "Frequent latents to the right. With class labels: dark is specific to few classes.",
                "scatter of activated frequency and mean activation",
            ),
        ),
        section(
            "Scores",
            table(
                ["score", "value", "n"],
                [[f"{m.name}<small>{m.definition}</small>", cell(m.value), f"{m.n:,}"] for m in scores.values()],
            ),
        ),
        section(
            "Model and data",
            facts(
                {
                    "Model": f"<code>{escape(model.spec)}</code>, weights <code>{store.config.weight_hash}</code>",
                    "Images": f"<code>{escape(store.config.source or 'given in Python')}</code>",
                    "Dictionary": f"{dictionary.family}, {dictionary.extra_repr()}",
                    "Written by": f"vlsae {__version__}",
                }
            ),
        ),
    )  # fmt: skip
