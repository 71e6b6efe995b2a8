"""Reference images and heatmaps of latents, ready for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from PIL import Image

from vlsae.activations.reader import ActivationStore
from vlsae.backbones.base import Backbone
from vlsae.concepts.naming import LatentName
from vlsae.concepts.statistics import LatentStatistics
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import has_grids, latent_grids, stored_grids
from vlsae.heatmaps.render import reference_grid
from vlsae.report.page import latent_card

N_REFERENCES = 5


def reference_picture(
    model: Backbone,
    dictionary: Dictionary,
    statistics: LatentStatistics,
    latent: int,
    open_image: Callable[[int], Image.Image],
    store: ActivationStore | None = None,
    n: int = N_REFERENCES,
    side: int = 96,
) -> Image.Image | None:
    """The latent's top images above their heatmaps, on one printed scale; None for a latent without images.

    The activations come from the store of the statistics where it is given and holds all patches, else from the model.
    """
    members = [int(i) for i in statistics.top_images[latent] if i >= 0][:n]
    if not members:
        return None
    images = [open_image(i) for i in members]
    if store is not None and has_grids(store):
        grids = stored_grids(store, dictionary, members, [latent])[:, 0].numpy()
    else:
        grids = latent_grids(model, dictionary, images, [latent])[:, 0].numpy()
    for image in images:
        image.thumbnail((4 * side, 4 * side))  # maps of full-size photographs would fill the memory
    maps = [model.geometry.to_image(grid, image.size) for grid, image in zip(grids, images, strict=True)]
    return reference_grid(images, maps, side=side)


def name_note(name: LatentName) -> str:
    """What speaks for a name, in one line."""
    return (
        f"atom says “{escape(name.atom_word)}” ({name.atom_score:.1f}&nbsp;σ), top images say “{escape(name.image_word)}” "
        f"({name.image_score:.1f}&nbsp;σ)"
        if name.image_score > float("-inf")
        else f"atom says “{escape(name.atom_word)}” ({name.atom_score:.1f}&nbsp;σ)"
    )


def latent_cards(
    model: Backbone,
    dictionary: Dictionary,
    statistics: LatentStatistics,
    latents: Sequence[int],
    open_image: Callable[[int], Image.Image],
    names: Sequence[LatentName] | None = None,
    badges: Sequence[str] | None = None,
    store: ActivationStore | None = None,
) -> str:
    """One card a latent: name, what speaks for it, frequency, reference images and heatmaps."""
    cards = []
    for latent, badge in zip(latents, badges or [""] * len(latents), strict=True):
        picture = reference_picture(model, dictionary, statistics, latent, open_image, store)
        if picture is None:
            continue
        title = f"#{latent}" + (f" · {names[latent]}" if names else "")
        frequency = f"active in {statistics.image_density[latent]:.1%} of images"
        note = f"{frequency}; {name_note(names[latent])}" if names else frequency
        cards.append(latent_card(title, badge, note, picture, f"reference images of {title}"))
    return f'<div class="cards">{"".join(cards)}</div>'
