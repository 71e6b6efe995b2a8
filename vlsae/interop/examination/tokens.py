"""Tokens of a sample of images, at one site in full and at the others in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.images.decode import UnreadableImage
from vlsae.images.sources import load_images

STREAMS = ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out")


def site_widths(model: Backbone) -> dict[str, int]:
    """The width of every site of a model, from one blank image and one text; blocks of a stack are alike."""
    inputs = {"vision": [Image.new("RGB", (64, 64))], "text": ["a"]}
    places = {name: Site.parse(name) for name in model.sites()}
    widths = {}
    for tower, probe in inputs.items():
        first = [name for name, site in places.items() if site.tower == tower and site.block in (0, None)]
        if first:
            widths |= {name: found.shape[-1] for name, found in model.tokens_at(probe, first).items()}
    return {
        name: widths[name if site.block is None else f"{site.tower}.0.{site.stream}"] for name, site in places.items()
    }


def comparable_sites(site: Site | None, widths: Mapping[str, int], width: int) -> list[str]:
    """Sites of the vision tower's blocks at which a dictionary of this width can be tried; each place once.

    The stream before a block is the one after the block before it, so only the first `resid_pre` is listed.
    """
    if site is not None and (site.tower == "text" or site.stream == "pooled"):
        return []
    parsed = [Site.parse(name) for name, wide in widths.items() if wide == width]
    return [
        str(other)
        for other in parsed
        if other.tower == "vision" and other.stream != "pooled" and (other.stream != "resid_pre" or other.block == 0)
    ]


def sample_inputs(images: Any, n: int, seed: int) -> list[Any]:
    """`n` of the images, or texts, drawn without replacement; those that cannot be read are passed over.

    Args:
        images: whatever `load_images` opens, a list of strings, or preprocessed pixels `[I, 3, H, W]`.

    Raises:
        ValueError: for fewer than 2 that can be read, from which no interval follows.
    """
    if not isinstance(images, Tensor) and not _texts(images):
        images = load_images(images)
    chosen: list[Any] = []
    for i in np.random.default_rng(seed).permutation(len(images)).tolist():
        try:
            chosen.append(images[i])
        except UnreadableImage:
            continue
        if len(chosen) == n:
            break
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} images can be read; give 2 or more (64 is usual), since intervals are over images."
        )
    return chosen


def _texts(inputs: Any) -> bool:
    return isinstance(inputs, (list, tuple)) and len(inputs) > 1 and all(isinstance(text, str) for text in inputs)


def read_tokens(
    model: Backbone, inputs: Sequence[Any], places: Mapping[str, Sequence[int]], batch_size: int, progress: bool
) -> dict[str, Tensor]:
    """Tokens at several sites in one pass, each float32 `[I, len(places[site]), d]` on the processor.

    Args:
        inputs: of one tower, as `sample_inputs` gives them.
        places: by site, which tokens are kept.
    """
    parts: dict[str, list[Tensor]] = {site: [] for site in places}
    for start in tqdm(range(0, len(inputs), batch_size), desc="read", unit="batch", disable=not progress):
        batch = inputs[start : start + batch_size]
        batch = torch.stack(batch) if isinstance(batch[0], Tensor) else batch
        for site, tokens in model.tokens_at(batch, list(places)).items():
            parts[site].append(tokens[:, list(places[site])].cpu())
    return {site: torch.cat(found) for site, found in parts.items()}
