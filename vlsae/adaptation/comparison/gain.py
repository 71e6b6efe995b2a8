"""Where the accuracy of an adapted model comes from: other latents, or other use of the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vlsae.adaptation.comparison.site_tokens import ROLES, SiteTokens, check_labels, image_batches
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.result import Metric
from vlsae.splice.audits.inference import check_resampling, percentiles

REFERENCE = "question of arXiv 2412.05276, section 5; split as Shapley's value of two players"
DEFINITIONS = {
    "base": "accuracy of the base model",
    "adapted": "accuracy of the adapted model",
    "gain": "adapted - base",
    "latents": "1/2 [acc(a, b) - acc(b, b) + acc(a, a) - acc(b, a)], acc(L, H) with L's tokens and H's later blocks and head",
    "remapping": "gain - latents: 1/2 [acc(b, a) - acc(b, b) + acc(a, a) - acc(a, b)]",
    "adapted_tokens": "acc(a, b): the adapted model's tokens under base's later blocks and head",
    "base_tokens": "acc(b, a): base's tokens under the adapted model's later blocks and head",
    "head_only": "base's image embeddings under the adapted model's head",
    "shared_only": "the adapted model with the latents that are not shared (above tau in both) removed, error kept",
    "base_codes": "the adapted model with base's codes of all latents, error kept",
    "base_amplitudes": "the adapted model with base's codes of shared latents and its own of the others, error kept",
}


@dataclass(frozen=True)
class Gain:
    """Accuracies of counterfactual models and the parts of the gain.

    Attributes:
        metrics: by name, as in `DEFINITIONS`, each with a 95 % interval over images, resampled in pairs.
        correct: by counterfactual ("bb" base, "aa" adapted, "ab" adapted tokens in base, "ba", and the names above),
            which images are classified right, bool `[N]`.
    """

    metrics: dict[str, Metric]
    correct: dict[str, np.ndarray]

    def value(self, name: str) -> float:
        """A number by its name; raises KeyError for an unknown one."""
        return self.metrics[name].value


@torch.no_grad()
def decompose_gain(
    base: Backbone,
    adapted: Backbone,
    images: Sequence,
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    site: str | None = None,
    dictionary: Dictionary | None = None,
    shared: np.ndarray | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    roles: Sequence[str] = ROLES,
    batch_size: int = 16,
    n_boot: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Gain:
    """Split an accuracy gain into the part of the latents and that of what is made of them.

    With `acc(L, H)` the accuracy with model L's image tokens at the site and model H's later blocks, prompts and head:

    `latents = 1/2 [acc(a, b) - acc(b, b) + acc(a, a) - acc(b, a)]`, `remapping = acc(a, a) - acc(b, b) - latents`.

    Args:
        base, adapted: models of one vision tower.
        images: sequence of images or scenes, or preprocessed pixels `[I, 3, H, W]`.
        labels: class number of every image, in `class_names`.
        class_names, templates: as for `Backbone.head`.
        site: a residual or pooled site where the tokens are exchanged; the dictionary's own where None.
        dictionary: with `shared`, for the counterfactuals of latents in the adapted model.
        shared: bool `[n_latents]`, latents that count as active in both models; bool `[C, n_latents]` for a set a class.
        roles: of the tokens that are exchanged.
        batch_size: images a forward pass, of which each goes on in several variants.
        n_boot: resamples of the images behind the intervals, at least 20.
        seed: of these.
        progress: show a progress bar.

    Returns:
        `Gain`; "shared_only", "base_codes" and "base_amplitudes" only with `shared`.

    Raises:
        ValueError: for labels, token grids or a set of latents that do not fit, no site, or too few resamples.

    Example:
        >>> from vlsae import load_model, world
        >>> tiny = load_model("tiny")
        >>> found = decompose_gain(tiny, tiny, world.scenes(4), [0, 1, 0, 1], ["cat", "dog"], site="vision.-2.resid_post",
        ...                        progress=False)
        >>> found.value("gain"), found.value("latents"), found.value("remapping")
        (0.0, 0.0, 0.0)
    """
    labels = check_labels(len(images), labels, len(class_names))
    check_resampling(n_boot, 0.95)
    if site is None and dictionary is None:
        raise ValueError("Neither a site nor a dictionary was given; pass site='vision.-2.resid_post' or the like.")
    site = site or dictionary_site(dictionary)
    pair = SiteTokens(base, site, roles), SiteTokens(adapted, site, roles)
    if len(pair[0].places) != len(pair[1].places):
        raise ValueError(
            f"{base.spec} has {len(pair[0].places)} image tokens at {site} and {adapted.spec} {len(pair[1].places)}; "
            "compare models of one vision tower."
        )
    members = _members(dictionary, shared, len(class_names))
    heads = base.head(class_names, templates), adapted.head(class_names, templates)
    correct: dict[str, np.ndarray] = {}
    for rows, batch in image_batches(images, batch_size, "gain", progress):
        pixels, classes = base.pixels(batch), torch.from_numpy(labels[rows])
        latents = None if members is None else _Latents(dictionary, members[classes if len(members) > 1 else [0]])
        for name, logits in _counterfactuals(pair, heads, pixels, latents):
            right = logits.argmax(-1).cpu() == classes
            correct.setdefault(name, np.zeros(len(labels), bool))[rows] = right.numpy()
    return Gain(_metrics(correct, n_boot, seed), correct)


def _members(dictionary: Dictionary | None, shared: np.ndarray | None, n_classes: int) -> Tensor | None:
    """The shared latents as bool `[C or 1, n_latents]`."""
    if shared is None:
        return None
    found, n = np.atleast_2d(np.asarray(shared)), None if dictionary is None else dictionary.n_latents
    if n is None or found.dtype != bool or found.shape not in ((1, n), (n_classes, n)):
        raise ValueError(
            f"shared is {found.dtype} {np.shape(shared)} for {'no dictionary' if n is None else f'{n} latents'}; give a "
            f"dictionary, and bool [n_latents] or [{n_classes}, n_latents]."
        )
    return torch.from_numpy(found)


def _counterfactuals(pair, heads, pixels: Tensor, latents: _Latents | None) -> Iterator[tuple[str, Tensor]]:
    """Logits by counterfactual; the blocks before the site run once in the adapted model and twice in base."""
    tokens_b, seen = pair[0].read(pixels), []

    def in_adapted(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        others = [tokens_b] if latents is None else [tokens_b, *latents.variants(tokens_b, x)]
        return _stacked(x, others)

    names = ["aa", "ba", *(() if latents is None else _Latents.names)]
    for name, embeddings in zip(names, pair[1].forward(pixels, in_adapted).split(len(pixels)), strict=True):
        yield name, heads[1](embeddings)
    b, ab = pair[0].forward(pixels, lambda x: _stacked(x, seen)).split(len(pixels))
    yield from (("bb", heads[0](b)), ("ab", heads[0](ab)), ("head_only", heads[1](b)))


def _stacked(x: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A model's own tokens and then others for the same images."""
    return torch.cat([x, *(tokens.to(x) for tokens in others)]), torch.arange(len(x)).repeat(1 + len(others))


@dataclass(frozen=True)
class _Latents:
    """What becomes of the adapted model's tokens when some of its latents are taken from base, or away.

    Attributes:
        shared: bool `[B or 1, n_latents]`, an image's shared latents.
    """

    names: ClassVar = ("shared_only", "base_codes", "base_amplitudes")
    dictionary: Dictionary
    shared: Tensor

    def variants(self, base: Tensor, adapted: Tensor) -> list[Tensor]:
        """`x_a + D(z') - D(z_a)` of tokens `[B, t, d]`, for the codes z' of each name."""
        n, t = adapted.shape[:2]
        flat = [x.flatten(0, 1).to(self.dictionary.W_dec) for x in (base, adapted)]
        b, a = (self.dictionary.encode_sparse(x) for x in flat)
        in_b, in_a = (self._is_shared(codes, t) for codes in (b, a))
        new = [_merged((a, in_a)), b, _merged((b, in_b), (a, ~in_a))]
        whole = self.dictionary.decode(a, like=flat[1])
        moved = (flat[1] + (self.dictionary.decode(codes, like=flat[1]) - whole) for codes in new)
        return [x.unflatten(0, (n, t)) for x in moved]

    def _is_shared(self, codes: Codes, t: int) -> Tensor:
        shared = self.shared.to(codes.rows.device)
        return shared[codes.rows // t if len(shared) > 1 else torch.zeros_like(codes.rows), codes.latents]


def _merged(*parts: tuple[Codes, Tensor]) -> Codes:
    """Some entries of each of several codes of the same rows, as one."""
    rows, latents, values = (
        torch.cat([getattr(codes, name)[kept] for codes, kept in parts]) for name in ("rows", "latents", "values")
    )
    order = rows.argsort(stable=True)
    return Codes(rows[order], latents[order], values[order], parts[0][0].n, parts[0][0].n_latents)


def _metrics(correct: dict[str, np.ndarray], n_boot: int, seed: int) -> dict[str, Metric]:
    """Means over images, resampled together, so that differences are of pairs."""
    c = {name: right.astype(np.float64) for name, right in correct.items()}
    names = {"base": "bb", "adapted": "aa", "adapted_tokens": "ab", "base_tokens": "ba"}
    terms = {
        "gain": c["aa"] - c["bb"],
        "latents": (c["ab"] - c["bb"] + c["aa"] - c["ba"]) / 2,
        "remapping": (c["ba"] - c["bb"] + c["aa"] - c["ab"]) / 2,
        **{name: c[key] for name, key in names.items()},
        **{name: values for name, values in c.items() if name in DEFINITIONS},
    }
    table = np.stack(list(terms.values()), 1)
    rng, n = np.random.default_rng(seed), len(table)
    samples = np.stack([rng.multinomial(n, np.full(n, 1 / n)) @ table / n for _ in range(n_boot)])
    low, high = percentiles(samples, 0.95)
    return {
        name: Metric(name, float(table[:, i].mean()), n, DEFINITIONS[name], REFERENCE,
                     None if name in ("gain", "latents", "remapping") else True, (float(low[i]), float(high[i])))
        for i, name in enumerate(terms)
    }  # fmt: skip
