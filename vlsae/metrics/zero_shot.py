"""Whether the model still classifies with a dictionary spliced into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.result import Metric

DEFINITIONS = {
    "original": "share of images whose most probable class is right",
    "spliced": "the same with the tokens replaced by their reconstruction",
    "error_kept": "the same with the reconstruction and its error, xhat + (x - xhat): must equal the original",
    "zeroed": "the same with the tokens replaced by zeros: what the later blocks know without them",
}


def splice(
    dictionary: Dictionary, roles: Sequence[str], replace: Sequence[str], mode: str
) -> Callable[[Tensor], Tensor]:
    """An edit that puts the dictionary's view in place of the tokens whose role is in `replace`."""
    chosen = torch.tensor([role in replace for role in roles])

    def fn(tokens: Tensor) -> Tensor:
        x = tokens[:, chosen]
        if mode == "zeroed":
            new = torch.zeros_like(x)
        else:
            xhat = dictionary.reconstruct(x.to(dictionary.W_dec.device)).to(x)
            new = xhat + (x - xhat) if mode == "error_kept" else xhat
        out = tokens.clone()
        out[:, chosen] = new
        return out

    return fn


def spliced_zero_shot(
    model: Backbone,
    dictionary: Dictionary,
    images,
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    replace: Sequence[str] = ("patch",),
    site: str | None = None,
    batch_size: int = 64,
    modes: Sequence[str] = tuple(DEFINITIONS),
) -> dict[str, Metric]:
    """Zero-shot accuracy: original, with the reconstruction, with reconstruction and error, with zeros.

    Args:
        model: with a text tower.
        dictionary: trained on its vision tokens.
        images: sequence of images or scenes.
        labels: right class of every image.
        class_names: words of the classes.
        templates: prompts with one `{}`.
        replace: roles of the tokens that are replaced; those the dictionary was trained on.
        site: where; the dictionary's own where None.
        batch_size: images a forward pass.
        modes: which of "original", "spliced", "error_kept" and "zeroed" to measure.

    Returns:
        A metric a mode.

    Raises:
        ValueError: for unequal numbers of images and labels, or an unknown mode.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels were given; give one label an image.")
    unknown = set(modes) - set(DEFINITIONS)
    if unknown:
        raise ValueError(f"Unknown mode {sorted(unknown)[0]!r}; use some of {', '.join(DEFINITIONS)}.")
    classes = model.classifier(class_names, templates)
    truth = torch.as_tensor(list(labels))
    edit = partial(splice, dictionary, model.token_roles, replace)
    right = dict.fromkeys(modes, 0)
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels = model.pixels([images[i] for i in range(start, min(start + batch_size, len(images)))])
            for mode in modes:
                if mode == "original":
                    embedding = model.forward_image(pixels)
                else:
                    with model.edit(dictionary_site(dictionary, site), edit(mode)):
                        embedding = model.forward_image(pixels)
                best = (F.normalize(embedding.float(), dim=-1) @ classes.T).argmax(-1).cpu()
                right[mode] += int((best == truth[start : start + len(best)]).sum())
    return {
        mode: Metric(f"zero_shot_{mode}", right[mode] / len(images), len(images), DEFINITIONS[mode]) for mode in modes
    }
