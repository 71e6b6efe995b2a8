"""Masking curves: accuracy while the latents that rank first are kept or removed, every image under its class's mask."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlsae.adaptation.comparison.aggregation import Aggregates
from vlsae.adaptation.comparison.gains import harmonic_mean
from vlsae.adaptation.comparison.masking_ranks import class_ranking, dataset_ranking, random_ranking
from vlsae.atomic import replacing
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.latent_effects import written
from vlsae.splice.audits.inference import wilson

DIRECTIONS = ("on", "off")
KS = (0, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class MaskRow:
    """Images of one class under one mask.

    Attributes:
        model: its name; ranking: "class", "dataset" or "random".
        direction: "on", only the first k latents kept; "off", these removed.
        k: latents at the top; n_latents of the dictionary for all.
        class_id: of the images; n: images (times seeds, for random rankings); correct: of these, classified right.
    """

    model: str
    ranking: str
    direction: str
    k: int
    class_id: int
    n: int
    correct: int

    @property
    def condition(self) -> str:
        return f"{self.direction}_{self.k}"

    @property
    def accuracy(self) -> float:
        return self.correct / self.n


@dataclass(frozen=True)
class MaskingCurves:
    """Accuracies under masks, as a table of one row a model, ranking, direction, k and class.

    Attributes:
        rows: the table.
        unmasked: accuracy of every model without a mask.
        n_images: images of each model's point, without seeds.
        error_kept: whether what the dictionary does not explain was left in place.
    """

    rows: list[MaskRow]
    unmasked: dict[str, float]
    n_images: int
    error_kept: bool

    def accuracy(self, model: str, ranking: str, direction: str, k: int, classes: Sequence[int] | None = None) -> float:
        """Accuracy over the images of some classes, or all; NaN where there is no such image."""
        found = [r for r in self.rows if (r.model, r.ranking, r.direction, r.k) == (model, ranking, direction, k)
                 and (classes is None or r.class_id in classes)]  # fmt: skip
        n = sum(r.n for r in found)
        return sum(r.correct for r in found) / n if n else float("nan")

    def base_and_new(self, model: str, ranking: str, direction: str, k: int, base: Sequence[int], new: Sequence[int]):
        """Accuracies on base and new classes and their harmonic mean, in per cent."""
        b, n = (100 * self.accuracy(model, ranking, direction, k, classes) for classes in (base, new))
        return b, n, harmonic_mean(b, n)

    def series(self) -> dict[tuple[str, str, str], tuple[list[int], list[float], list[float], list[float]]]:
        """By direction, model and ranking: k, accuracy over all images, ends of its Wilson interval."""
        sums: dict[tuple, dict[int, list[int]]] = {}
        for r in self.rows:
            total = sums.setdefault((r.direction, r.model, r.ranking), {}).setdefault(r.k, [0, 0])
            total[0] += r.correct
            total[1] += r.n
        found = {}
        for key, by_k in sums.items():
            right, n = np.array([by_k[k] for k in sorted(by_k)]).T
            low, high = wilson(
                np.round(right * self.n_images / n), np.full(len(n), self.n_images)
            )  # seeds share images
            found[key] = sorted(by_k), (right / n).tolist(), low.tolist(), high.tolist()
        return found

    def write_csv(self, path: str | Path) -> Path:
        """Write the table in long format, in one step."""
        names = ("condition", "model", "ranking", "direction", "k", "class_id", "n", "correct", "accuracy")
        with replacing(Path(path)) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([*names, "error_kept"])
            out.writerows([*(getattr(row, name) for name in names), self.error_kept] for row in self.rows)
        return Path(path)


def rankings_of(aggregates: Aggregates, n_classes: int, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, np.ndarray]:
    """Places of all latents, `[C, n]` by ranking: of the class itself, of the data set, and at random for every seed.

    Classes without images get the data set's.
    """
    whole = _places(dataset_ranking(aggregates).order)
    known = set(aggregates.classes.tolist())
    rows = [_places(class_ranking(aggregates, c).order) if c in known else whole for c in range(n_classes)]
    found = {"class": np.stack(rows), "dataset": np.tile(whole, (n_classes, 1))}
    for seed in seeds:
        found[f"random {seed}"] = np.tile(_places(random_ranking(aggregates, seed).order), (n_classes, 1))
    return found


def _places(order: np.ndarray) -> np.ndarray:
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


@torch.no_grad()
def masking_curves(
    models: Mapping[str, Backbone], dictionary: Dictionary, images: Sequence, labels: Sequence[int],
    class_names: Sequence[str], rankings: Mapping[str, np.ndarray], *, ks: Sequence[int] = KS,
    templates: Sequence[str] = DEFAULT_TEMPLATES, error_kept: bool = True, site: str | None = None, batch_size: int = 8,
    progress: bool = True,
) -> MaskingCurves:  # fmt: skip
    """Accuracy of models while latents are kept or removed, `x + D(z masked) - D(z)` at every image token of the site.

    Images of class c are seen under the masks of class c alone (PatchSAE's causal test, arXiv 2412.05276, section 4). The
    tokens of prompts stay as they are. Each image runs through the blocks before the site once; all masks share that.

    Args:
        models: by name, such as {"base": ..., "adapted": ...}.
        dictionary: with one decoder and a transform of all tokens alike.
        images, labels: what is classified; class numbers in `class_names`, images with negative ones are left out.
        class_names, templates: as for `Backbone.head`.
        rankings: places of latents `[C, n_latents]`, 0 first, from `rankings_of`; several called "random SEED" are averaged.
        ks: sizes of the top; the whole dictionary is added.
        error_kept: leave in place what the dictionary does not explain; else the tokens become reconstructions.
        site: a residual or pooled site of the vision tower; the dictionary's own where None.
        batch_size: images at a time, each under every mask.
        progress: show a progress bar.

    Returns:
        `MaskingCurves`.

    Raises:
        ValueError: for rankings of another shape, negative ks, labels that do not fit, or a decoder that is not linear.
    """
    labels = np.asarray(labels)
    shape = len(class_names), dictionary.n_latents
    if len(labels) != len(images) or labels.max(initial=-1) < 0 or labels.max() >= len(class_names) or min(ks) < 0:
        raise ValueError(
            f"{len(images)} images, {len(labels)} labels, {len(class_names)} class names and ks={tuple(ks)} were given; "
            "give one label an image, numbers of the class names, and sizes of at least 0."
        )
    wrong = [f"{name!r} {places.shape}" for name, places in rankings.items() if places.shape != shape]
    if wrong:
        raise ValueError(f"Rankings are {', '.join(wrong)}; expected places of all latents, {shape}.")
    sizes = sorted({*ks, dictionary.n_latents} - {k for k in ks if k > dictionary.n_latents})
    chosen, site = np.flatnonzero(labels >= 0), dictionary_site(dictionary, site)
    counts: dict[tuple, list[int]] = {}
    unmasked = {}
    for name, model in models.items():
        masks = _Masks(dictionary, rankings, sizes, error_kept, _image_tokens(model, site))
        head, right = model.head(class_names, templates), 0
        for start in tqdm(range(0, len(chosen), batch_size), desc=f"masks, {name}", unit="batch", disable=not progress):
            rows = chosen[start : start + batch_size]
            classes = torch.from_numpy(labels[rows])
            with model.edit(site, lambda tokens, classes=classes, masks=masks: masks(tokens, classes)):
                embeddings = F.normalize(model.forward_image(model.pixels([images[i] for i in rows])).float(), dim=-1)
            hits = head(embeddings).argmax(-1).cpu().unflatten(0, (-1, len(rows))) == classes
            right += int(hits[0].sum())
            for (ranking, direction, k), row in zip(masks.conditions(), hits[1:], strict=True):
                for c in classes.unique().tolist():
                    at = classes == c
                    total = counts.setdefault((name, ranking.split()[0], direction, k, c), [0, 0])
                    total[0] += int(at.sum())
                    total[1] += int(row[at].sum())
        unmasked[name] = right / len(chosen)
    return MaskingCurves([MaskRow(*key, *total) for key, total in counts.items()], unmasked, len(chosen), error_kept)


def _image_tokens(model: Backbone, site: str) -> list[int]:
    return [0] if site.endswith("pooled") else [i for i, role in enumerate(model.token_roles) if role != "prompt"]


class _Masks:
    """An edit that gives the tokens of some images once as they are and then under every mask.

    A latent's place falls into one of the intervals between the sizes; sums of what the latents of each interval write
    are made once, and their running sums are the masks of all sizes in both directions.
    """

    def __init__(self, dictionary: Dictionary, rankings: Mapping[str, np.ndarray], sizes: Sequence[int], error_kept: bool,
                 own: Sequence[int]):  # fmt: skip
        self.dictionary, self.sizes, self.error_kept, self.own = dictionary, list(sizes), error_kept, list(own)
        device = dictionary.W_dec.device
        self.atoms = written(dictionary)
        bounds = torch.tensor(self.sizes, device=device)
        self.intervals = {
            name: torch.bucketize(torch.as_tensor(p, device=device), bounds, right=True) for name, p in rankings.items()
        }

    def conditions(self) -> Iterator[tuple[str, str, int]]:
        """Ranking, direction and k of every mask, in the order of the result."""
        return ((name, way, k) for name in self.intervals for way in DIRECTIONS for k in self.sizes)

    def __call__(self, tokens: Tensor, classes: Tensor) -> Tensor:
        x = tokens[:, self.own]
        n_images, n_tokens = x.shape[:2]
        flat = x.flatten(0, 1).float().to(self.atoms.device)
        z = self.dictionary.encode_sparse(flat)
        parts = z.values[:, None] * self.atoms[z.latents]
        of_row = classes.to(z.rows.device).repeat_interleave(n_tokens)[z.rows]
        whole = torch.zeros_like(flat).index_add_(0, z.rows, parts)
        start = flat if self.error_kept else self.dictionary.decode(z, like=flat)
        results = [flat]
        for intervals in self.intervals.values():
            slot = z.rows * (len(self.sizes) + 1) + intervals[of_row, z.latents]
            sums = flat.new_zeros(len(flat) * (len(self.sizes) + 1), flat.shape[1]).index_add_(0, slot, parts)
            top = sums.unflatten(0, (len(flat), -1)).cumsum(1)[:, :-1].unbind(1)
            results += [start - (whole - kept) for kept in top] + [start - removed for removed in top]
        masked = torch.stack(results).unflatten(1, (n_images, n_tokens)).to(tokens)
        changed = tokens.expand(len(masked), *tokens.shape).clone()
        changed[:, :, self.own] = masked
        return changed.flatten(0, 1)
