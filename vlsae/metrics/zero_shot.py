"""Whether the model still classifies with a dictionary spliced into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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


@torch.no_grad()
def edited_similarities(
    model: Backbone, images, classes: Tensor, site: str, edits: Mapping[str, Callable[[Tensor], Tensor]], batch_size: int = 64
) -> Iterator[tuple[str, slice, Tensor]]:  # fmt: skip
    """Edit by name, images and their cosines with the classes, `[b, classes]`, batch after batch.

    At a site that carries whole tokens, the blocks before it are computed once for all edits.

    Args:
        model: the backbone.
        images: sequence of images or scenes.
        classes: unit class embeddings `[classes, e]`.
        site: what is edited.
        edits: functions of `[B, T, d]` by name, as for `model.edit`.
        batch_size: images a forward pass, counting every edit's.
    """
    if not edits:
        return
    passes = [list(edits)] if Site.parse(site).is_whole else [[name] for name in edits]
    size = max(1, batch_size // max(1, len(passes[0])))
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        pixels = model.pixels([images[i] for i in range(rows.start, rows.stop)])
        for names in passes:
            with model.edit(site, lambda tokens, names=names: torch.cat([edits[name](tokens) for name in names])):
                embeddings = F.normalize(model.forward_image(pixels).float(), dim=-1)
            for name, part in zip(names, (embeddings @ classes.T).cpu().chunk(len(names)), strict=True):
                yield name, rows, part


def spliced_similarities(
    model: Backbone, dictionary: Dictionary, images, labels: Sequence[int], class_names: Sequence[str],
    templates: Sequence[str], replace: Sequence[str], site: str | None, batch_size: int, modes: Sequence[str],
    baselines: Mapping[str, Dictionary] | None = None,
) -> Iterator[tuple[str, slice, Tensor]]:  # fmt: skip
    """As `edited_similarities` for each mode, and for each baseline as `baseline NAME`; see `spliced_zero_shot`."""
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels were given; give one label an image.")
    unknown = set(modes) - set(DEFINITIONS)
    if unknown:
        raise ValueError(f"Unknown mode {sorted(unknown)[0]!r}; use some of {', '.join(DEFINITIONS)}.")
    edit = partial(splice, roles=model.token_roles, replace=replace)
    edits = {mode: _same if mode == "original" else edit(dictionary, mode=mode) for mode in modes}
    edits |= {f"baseline {name}": edit(other, mode="spliced") for name, other in (baselines or {}).items()}
    classes = model.classifier(class_names, templates)
    return edited_similarities(model, images, classes, dictionary_site(dictionary, site), edits, batch_size)


def _same(tokens: Tensor) -> Tensor:
    return tokens


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
        batch_size: images a forward pass, counting every mode's and baseline's.
        modes: which of "original", "spliced", "error_kept" and "zeroed" to measure.
        baselines: other dictionaries of the same site, whose accuracies stand beside the spliced one.

    Returns:
        A metric a mode.

    Raises:
        ValueError: for unequal numbers of images and labels, or an unknown mode.
    """
    truth = torch.as_tensor(list(labels))
    names = {name: f"baseline {name}" for name in baselines or ()}
    right = dict.fromkeys([*modes, *names.values()], 0)
    for mode, rows, similarity in spliced_similarities(
        model, dictionary, images, labels, class_names, templates, replace, site, batch_size, modes, baselines
    ):
        right[mode] += int((similarity.argmax(-1) == truth[rows]).sum())
    accuracy = {mode: n / len(images) for mode, n in right.items()}
    beside = {"spliced": {name: accuracy[key] for name, key in names.items()}}
    return {
        mode: Metric(
            f"zero_shot_{mode}", accuracy[mode], len(images), DEFINITIONS[mode], baselines=beside.get(mode, {})
        )
        for mode in modes
    }
