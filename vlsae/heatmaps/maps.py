"""From codes to the patch grid to the pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlsae.activations.reader import ActivationStore
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.images.decode import to_rgb
from vlsae.images.sources import load_images


def dictionary_site(dictionary: Dictionary, site: str | None = None) -> str:
    """The site a dictionary was trained at; raises ValueError where neither it nor the caller knows."""
    site = site or dictionary.metadata.get("site")
    if site is None:
        raise ValueError("This dictionary does not know its site; pass site='vision.-2.resid_post' or the like.")
    return str(site)


@torch.no_grad()
def latent_grids(
    model: Backbone, dictionary: Dictionary, images, latents: Sequence[int] | None = None, site: str | None = None
) -> Tensor:
    """Activations on the patch grid, float32 `[images, latents, rows, columns]`.

    Args:
        model: the backbone.
        dictionary: trained on its patch tokens.
        images: as for `model.encode_image`.
        latents: which; all where None.
        site: where the dictionary reads; its own where None.

    Raises:
        ValueError: for a latent that does not exist, a site of the text tower, or unequal widths.
    """
    latents = _existing(dictionary, latents)
    return _grids(_patch_codes(model, dictionary, images, site), latents, model.patch_grid)


@torch.no_grad()
def stored_grids(
    store: ActivationStore, dictionary: Dictionary, images: Sequence[int], latents: Sequence[int] | None = None
) -> Tensor:
    """The same as `latent_grids` for images of a store, by number, without the model.

    Raises:
        ValueError: for a latent that does not exist, unequal widths, or a store without all patches.
    """
    latents, geometry = _existing(dictionary, latents), store.geometry
    if not has_grids(store):
        raise ValueError(f"{store.path} holds {store.config.tokens!r}, but heatmaps need all patches of an image.")
    patches = [i for i, role in enumerate(store.token_roles) if role == "patch"]
    tokens = torch.cat([store.images(i, i + 1) for i in images])[:, patches]
    codes = dictionary.encode_sparse(tokens.flatten(0, 1).to(dictionary.W_dec.device))
    return _grids(codes, latents, (geometry.rows, geometry.columns))


def has_grids(store: ActivationStore) -> bool:
    """Whether a store holds all patches of its images."""
    geometry = store.geometry
    whole = store.token_roles.count("patch") == geometry.rows * geometry.columns
    return whole and store.config.tokens != "random_k"


def _existing(dictionary: Dictionary, latents: Sequence[int] | None) -> Sequence[int]:
    """The latents that are asked for, all where None; raises ValueError for one that does not exist."""
    latents = range(dictionary.n_latents) if latents is None else latents
    wrong = [i for i in latents if not 0 <= i < dictionary.n_latents]
    if wrong:
        raise ValueError(f"Latent {wrong[0]} does not exist; this dictionary has 0 to {dictionary.n_latents - 1}.")
    return latents


def _grids(codes: Codes, latents: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """`[images, latents, rows, columns]` of some latents, from the codes of all patches."""
    return codes.columns(latents).float().cpu().unflatten(0, (-1, *grid)).permute(0, 3, 1, 2)


def _patch_codes(model: Backbone, dictionary: Dictionary, images, site: str | None) -> Codes:
    """Codes of all patches of the images, image after image."""
    tokens = model.tokens(images, dictionary_site(dictionary, site))
    if tokens.shape[1] != len(model.token_roles):
        raise ValueError("Heatmaps need a site of the vision tower with patch tokens.")
    patches = tokens[:, [i for i, role in enumerate(model.token_roles) if role == "patch"]]
    return dictionary.encode_sparse(patches.flatten(0, 1).to(dictionary.W_dec.device))


def heatmap(
    model: Backbone | str,
    dictionary: Dictionary,
    image,
    latent: int,
    *,
    site: str | None = None,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Where one latent is active in one image.

    Args:
        model: a `Backbone` or its name.
        dictionary: trained on its patch tokens.
        image: a path, a PIL image, or a scene.
        latent: its number.
        site: where the dictionary reads; its own where None.
        interpolation: "bilinear" or "nearest" (one value a patch).

    Returns:
        float32 `[height, width]` of the original image; NaN where the model's crop does not look.

    Raises:
        ValueError: for a latent that does not exist or a dictionary of another width.

    Example:
        >>> import vlsae
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> scene = vlsae.world.scenes(1)[0]
        >>> vlsae.heatmap("tiny", TopKDictionary(192, 8, k=2), scene, 3, site="vision.-2.resid_post").shape
        (64, 64)
    """
    model = load_model(model)
    picture = to_rgb(image.image) if hasattr(image, "image") else load_images(image)[0].image
    grid = latent_grids(model, dictionary, [picture], [latent], site)[0, 0].numpy()
    return model.geometry.to_image(grid, picture.size, interpolation)


@torch.no_grad()
def strongest_latents(model: Backbone, dictionary: Dictionary, image, n: int = 4, site: str | None = None) -> list[int]:
    """The `n` latents with the highest activation on any patch of an image, strongest first."""
    peaks = _patch_codes(model, dictionary, [image], site).peaks()
    return peaks.topk(min(n, len(peaks))).indices.tolist()
