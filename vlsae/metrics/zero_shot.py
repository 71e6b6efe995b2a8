"""Whether the model still classifies with a dictionary spliced into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.site import Site
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
    baselines: Mapping[str, Dictionary] | None = None,
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
        batch_size: images a forward pass, counting every mode's.
        modes: which of "original", "spliced", "error_kept" and "zeroed" to measure.
        baselines: other dictionaries of the same site, whose accuracies stand beside the spliced one.

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
    edit = partial(splice, roles=model.token_roles, replace=replace)
    edits = {mode: _same if mode == "original" else edit(dictionary, mode=mode) for mode in modes}
    others = {name: edit(other, mode="spliced") for name, other in (baselines or {}).items()}
    found = edited_zero_shot(
        model, images, labels, model.classifier(class_names, templates), dictionary_site(dictionary, site),
        [*edits.values(), *others.values()], batch_size,
    )  # fmt: skip
    beside = dict(zip(others, found[len(edits) :], strict=True))
    return {
        mode: Metric(f"zero_shot_{mode}", value, len(images), DEFINITIONS[mode], baselines=beside if mode == "spliced" else {})
        for mode, value in zip(edits, found)
    }  # fmt: skip


def _same(tokens: Tensor) -> Tensor:
    return tokens


@torch.no_grad()
def edited_zero_shot(
    model: Backbone, images, labels: Sequence[int], classes: Tensor, site: str, edits: Sequence[Callable], batch_size: int = 64
) -> list[float]:  # fmt: skip
    """Zero-shot accuracy under each of several edits of one site.

    At a site that carries whole tokens, the blocks before it are computed once for all edits.

    Args:
        model: the backbone.
        images: sequence of images or scenes; labels: right class of each.
        classes: unit class embeddings `[C, e]`.
        site: what is edited.
        edits: functions of `[B, T, d]`, as for `model.edit`.
        batch_size: images a forward pass, counting every edit's.

    Returns:
        Share of images whose most probable class is right, one an edit.
    """
    truth, right = torch.as_tensor(list(labels)), torch.zeros(len(edits), dtype=torch.long)
    passes = [edits] if Site.parse(site).is_whole else [[edit] for edit in edits]
    size = max(1, batch_size // len(passes[0]))
    for start in range(0, len(images), size):
        pixels = model.pixels([images[i] for i in range(start, min(start + size, len(images)))])
        best = []
        for together in passes:
            with model.edit(site, lambda tokens, fns=together: torch.cat([fn(tokens) for fn in fns])):
                embedding = model.forward_image(pixels)
            best.append((F.normalize(embedding.float(), dim=-1) @ classes.T).argmax(-1).cpu())
        right += (torch.cat(best).view(len(edits), -1) == truth[start : start + size]).sum(1)
    return [int(n) / len(images) for n in right]
