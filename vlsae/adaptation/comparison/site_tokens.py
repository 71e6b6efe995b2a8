"""The tokens of the image at one site of one model: where they stand, and how the model goes on from others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site

ROLES = ("cls", "patch")  # prompts and registers are not part of the image

Variants = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SiteTokens:
    """Image tokens of a model at a site; those of prompts are never touched.

    Args:
        model: the backbone.
        site: a residual or pooled site of its vision tower, from where the batch may grow.
        roles: of the tokens that count.

    Raises:
        ValueError: for another site, or where no token has such a role.
    """

    model: Backbone
    site: str
    roles: Sequence[str] = ROLES
    places: list[int] = field(init=False)

    def __post_init__(self) -> None:
        site = Site.parse(self.site)
        if not site.is_whole:
            raise ValueError(
                f"{self.site} does not carry whole tokens of images; use a site such as vision.-2.resid_post or "
                "vision.pooled."
            )
        own = self.model.token_roles
        places = [0] if site.stream == "pooled" else [i for i, role in enumerate(own) if role in self.roles]
        if not places:
            raise ValueError(f"roles={tuple(self.roles)} name no token; {self.model.spec} has {sorted(set(own))}.")
        object.__setattr__(self, "places", places)

    def read(self, pixels: Tensor) -> Tensor:
        """The image tokens `[B, t, d]`; nothing after the site is computed."""
        return self.model.tokens(pixels, self.site)[:, self.places]

    def forward(self, pixels: Tensor, variants: Variants) -> Tensor:
        """Unit embeddings `[U, e]` of other tokens in the place of the image's, from one pass through the blocks before.

        Args:
            pixels: `[B, 3, H, W]`.
            variants: gets the image tokens `[B, t, d]` and gives `[U, t, d]` with the image of each, `[U]`.
        """

        def fn(tokens: Tensor) -> Tensor:
            new, image = variants(tokens[:, self.places])
            changed = tokens[image.to(tokens.device)]
            changed[:, self.places] = new.to(changed)
            return changed

        with self.model.edit(self.site, fn):
            return F.normalize(self.model.forward_image(pixels).float(), dim=-1)


def check_labels(n_images: int, labels: Sequence[int], n_classes: int) -> np.ndarray:
    """Class numbers as an array, after a look at them.

    Raises:
        ValueError: where they are not one an image, not whole numbers, or not of these classes.
    """
    found = np.asarray(labels)
    fits = found.shape == (n_images,) and n_images > 0 and np.issubdtype(found.dtype, np.integer)
    if not fits or found.min() < 0 or found.max() >= n_classes:
        raise ValueError(
            f"{n_images} images and labels {found.dtype} {found.shape} of {n_classes} classes were given; give one number "
            f"from 0 to {n_classes - 1} an image, and at least one image."
        )
    return found


def image_batches(images, size: int, name: str, progress: bool) -> Iterator[tuple[slice, list | Tensor]]:
    """Images, or pixels, some at a time, with their rows."""
    with tqdm(total=len(images), desc=name, unit="image", disable=not progress) as bar:
        for start in range(0, len(images), size):
            rows = slice(start, min(start + size, len(images)))
            pixels = isinstance(images, torch.Tensor)
            yield rows, images[rows] if pixels else [images[i] for i in range(rows.start, rows.stop)]
            bar.update(rows.stop - rows.start)
