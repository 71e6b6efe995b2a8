"""Whether one dictionary still fits: reconstruction and spliced accuracy on both models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site

EXPLAINED, KEPT = 0.8, 0.8  # of what the base has: below, a comparison is about what the dictionary misses


@dataclass(frozen=True)
class Fit:
    """How well a dictionary fits one model.

    Attributes:
        explained_variance: centred, over image tokens.
        l0: active latents a token; dead: share of latents that no token activates.
        accuracy: of the model as it is; spliced_accuracy: with its image tokens replaced by their reconstruction.
        n: images.
    """

    explained_variance: float
    l0: float
    dead: float
    accuracy: float
    spliced_accuracy: float
    n: int


@dataclass(frozen=True)
class Validity:
    """The fit on both models, and what follows from it.

    Attributes:
        base, adapted: the fits.
        fits: the adapted model keeps `EXPLAINED` of the base's explained variance and `KEPT` of its share of accuracy
            kept under splicing.
        verdict: the same in words.
    """

    base: Fit
    adapted: Fit
    fits: bool
    verdict: str


def fit_of(
    model: Backbone, dictionary: Dictionary, images: Sequence, labels: Sequence[int], class_names: Sequence[str], *,
    templates: Sequence[str] = DEFAULT_TEMPLATES, site: str | None = None, batch_size: int = 16, progress: bool = True,
) -> Fit:  # fmt: skip
    """Explained variance, sparsity and spliced accuracy of a dictionary on one model, in one pass over the images.

    `EV = 1 - sum ||x - xhat||^2 / sum ||x - mean||^2` over the image's tokens (prompts are none).

    Args:
        model, dictionary, images, labels, class_names, templates: as for `decompose_gain`.
        site: where the dictionary reads; its own where None.
        batch_size: images a forward pass.
        progress: show a progress bar.
    """
    site, head = dictionary_site(dictionary, site), model.head(class_names, templates)
    own = [0] if site.endswith("pooled") else [i for i, role in enumerate(model.token_roles) if role != "prompt"]
    sums, targets = _Sums(dictionary), torch.as_tensor(np.asarray(labels))
    right = np.zeros(2, int)

    def splice(tokens: Tensor) -> Tensor:
        spliced = tokens.clone()
        spliced[:, own] = sums.reconstruct(tokens[:, own]).to(tokens)
        return torch.cat([tokens, spliced])

    with torch.no_grad(), model.edit(site, splice):
        for start in tqdm(range(0, len(images), batch_size), desc="fit", unit="batch", disable=not progress):
            batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            embeddings = F.normalize(model.forward_image(model.pixels(batch)).float(), dim=-1)
            hits = head(embeddings).argmax(-1).cpu().unflatten(0, (2, -1)) == targets[start : start + len(batch)]
            right += hits.sum(1).numpy()
    return Fit(*sums.result(), *(float(r) / len(images) for r in right), len(images))


class _Sums:
    """Running sums behind explained variance, L0 and dead share."""

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        self.n, self.error, self.squares, self.active = 0, 0.0, 0.0, 0
        self.total = torch.zeros(dictionary.d, dtype=torch.float64)
        self.seen = torch.zeros(dictionary.n_latents, dtype=torch.bool)

    def reconstruct(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).float().to(self.dictionary.W_dec.device)
        z = self.dictionary.encode_sparse(flat)
        xhat = self.dictionary.decode(z, like=flat)
        self.n += len(flat)
        self.error += float((flat - xhat).double().square().sum())
        self.squares += float(flat.double().square().sum())
        self.total += flat.double().sum(0).cpu()
        self.active += len(z.values)
        self.seen[z.latents.unique().cpu()] = True
        return xhat.unflatten(0, x.shape[:2])

    def result(self) -> tuple[float, float, float]:
        scatter = self.squares - float(self.total.square().sum()) / self.n
        return 1 - self.error / scatter, self.active / self.n, float((~self.seen).double().mean())


def validity(base: Fit, adapted: Fit) -> Validity:
    """Compare two fits of one dictionary.

    Example:
        >>> validity(Fit(0.9, 12, 0.1, 0.8, 0.76, 100), Fit(0.85, 13, 0.1, 0.9, 0.3, 100)).fits
        False
    """
    kept = [fit.spliced_accuracy / fit.accuracy if fit.accuracy else 1.0 for fit in (base, adapted)]
    explains = adapted.explained_variance >= EXPLAINED * base.explained_variance
    keeps = kept[1] >= KEPT * kept[0]
    said = (
        f"It explains {base.explained_variance:.0%} of the variance of base's tokens and {adapted.explained_variance:.0%} of "
        f"the adapted model's; with reconstructions in their place, {kept[0]:.0%} and {kept[1]:.0%} of the accuracy remain."
    )
    advice = " It fits both." if explains and keeps else (
        " It does not fit the adapted model well enough: train it on tokens of both models (`vlsae.train` on activations of "
        "each), and compare again. What follows says less about what the adapted model does than about what this dictionary "
        "sees of it."
    )  # fmt: skip
    return Validity(base, adapted, explains and keeps, said + advice)
