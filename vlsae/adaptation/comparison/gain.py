"""Where the accuracy of an adapted model comes from: other latents, or other use of the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.head import Head
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.result import Metric
from vlsae.splice.audits.inference import check_resampling

REFERENCE = "question of arXiv 2412.05276, section 5; split as Shapley's value of two players"
DEFINITIONS = {
    "base": "accuracy of the base model",
    "adapted": "accuracy of the adapted model",
    "gain": "adapted minus base",
    "latents": "part of the gain through the tokens at the site: the mean of swapping them in under base's later part and "
               "under the adapted model's",
    "remapping": "part of the gain through everything after the site: later blocks, prompts there, texts and head",
    "explained": "what of `latents` the dictionary carries: the same with the difference of the decoded codes instead of the "
                 "difference of the tokens",
    "adapted_tokens": "accuracy of the adapted model's tokens under base's later part and head",
    "base_tokens": "accuracy of base's tokens under the adapted model's later part and head",
    "shared_latents": "accuracy of the adapted model without the latents that base never uses on these images",
}  # fmt: skip
UNSIGNED = ("base", "adapted", "adapted_tokens", "base_tokens", "shared_latents")


@dataclass(frozen=True)
class Gain:
    """Accuracies of counterfactual models and the parts of the gain.

    Attributes:
        metrics: by name, as in `DEFINITIONS`, each with an interval over images.
        correct: by counterfactual, which images are classified right, bool `[N]`.
    """

    metrics: dict[str, Metric]
    correct: dict[str, np.ndarray]


@torch.no_grad()
def decompose_gain(
    base: Backbone, adapted: Backbone, dictionary: Dictionary, images: Sequence, labels: Sequence[int],
    class_names: Sequence[str], *, templates: Sequence[str] = DEFAULT_TEMPLATES, unused: np.ndarray | None = None,
    site: str | None = None, batch_size: int = 32, n_boot: int = 1000, seed: int = 0, progress: bool = True,
) -> Gain:  # fmt: skip
    """Split the accuracy gain of an adapted model into the part of its latents and that of their use.

    With `acc(L, H)` the accuracy of model L's tokens at the site under model H's later blocks, texts and head,

    `latents = 1/2 [acc(a, b) - acc(b, b) + acc(a, a) - acc(b, a)]`, `remapping = 1/2 [acc(b, a) - acc(b, b) + acc(a, a) -
    acc(a, b)]`,

    which add up to `acc(a, a) - acc(b, b)`. Tokens are those of the image; each model keeps prompts of its own.

    Args:
        base, adapted: models of one vision tower.
        dictionary: read at the site, for "explained" and "shared_latents".
        images, labels: what is classified, class numbers in `class_names`.
        class_names, templates: as for `Backbone.head`.
        unused: bool `[n_latents]`, latents that base never uses; "shared_latents" is left out where None.
        site: where the tokens are swapped; the dictionary's own where None.
        batch_size: images a forward pass.
        n_boot: resamples of the images behind the intervals, at least 20.
        seed: of these.
        progress: show a progress bar.

    Returns:
        `Gain`.

    Raises:
        ValueError: for no images, labels that do not fit, or too few resamples.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels were given; give one label an image, at least one."
        )
    check_resampling(n_boot, 0.95)
    swap = _Swap(base, adapted, dictionary, dictionary_site(dictionary, site))
    heads = base.head(class_names, templates), adapted.head(class_names, templates)
    targets, found = torch.as_tensor(np.asarray(labels)), {}
    for start in tqdm(range(0, len(images), batch_size), desc="gain", unit="batch", disable=not progress):
        batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        for name, logits in _counterfactuals(swap, heads, base.pixels(batch), unused).items():
            right = logits.argmax(-1).cpu() == targets[start : start + len(batch)]
            found.setdefault(name, []).append(right.numpy())
    correct = {name: np.concatenate(parts) for name, parts in found.items()}
    return Gain(_metrics(correct, n_boot, seed), correct)


class _Swap:
    """Two models whose image tokens at one site can be exchanged."""

    def __init__(self, base: Backbone, adapted: Backbone, dictionary: Dictionary, site: str):
        self.models, self.dictionary, self.site = (base, adapted), dictionary, site
        self.own = [
            [i for i, role in enumerate(model.token_roles) if role != "prompt"] if not site.endswith("pooled") else [0]
            for model in self.models
        ]

    def run(self, which: int, pixels: Tensor, edit: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Unit embeddings of a model and its image tokens at the site, the latter passed through `edit` first."""
        model, own, seen = self.models[which], self.own[which], []

        def fn(tokens: Tensor) -> Tensor:
            seen.append(tokens[:, own])
            if edit is None:
                return tokens
            changed = tokens.clone()
            changed[:, own] = edit(tokens[:, own]).to(tokens)
            return changed

        with model.edit(self.site, fn):
            embeddings = F.normalize(model.forward_image(pixels).float(), dim=-1)
        return embeddings, seen[0]

    def decoded(self, tokens: Tensor, without: Tensor | None = None) -> Tensor:
        """What the dictionary makes of tokens `[B, T, d]`, some latents left out."""
        flat = tokens.flatten(0, 1).float().to(self.dictionary.W_dec.device)
        z = self.dictionary.encode_sparse(flat)
        if without is not None:
            kept = ~without[z.latents]
            z = Codes(z.rows[kept], z.latents[kept], z.values[kept], z.n, z.n_latents)
        return self.dictionary.decode(z, like=flat).unflatten(0, tokens.shape[:2]).to(tokens)


def _counterfactuals(
    swap: _Swap, heads: tuple[Head, Head], pixels: Tensor, unused: np.ndarray | None
) -> dict[str, Tensor]:
    """Logits of every pair of tokens and later part, by name: whose tokens, then whose later part."""
    (b, tokens_b), (a, tokens_a) = swap.run(0, pixels), swap.run(1, pixels)
    step = swap.decoded(tokens_a) - swap.decoded(tokens_b)
    edits = {
        "ab": (0, lambda x: tokens_a),
        "ba": (1, lambda x: tokens_b),
        "explained ab": (0, lambda x: x + step),
        "explained ba": (1, lambda x: x - step),
    }
    if unused is not None:
        removed = torch.as_tensor(unused, device=swap.dictionary.W_dec.device)
        edits["shared"] = (1, lambda x: x + swap.decoded(x, removed) - swap.decoded(x))
    logits = {"bb": heads[0](b), "aa": heads[1](a)}
    return logits | {name: heads[which](swap.run(which, pixels, edit)[0]) for name, (which, edit) in edits.items()}


def _metrics(correct: dict[str, np.ndarray], n_boot: int, seed: int) -> dict[str, Metric]:
    c = {name: right.astype(np.float64) for name, right in correct.items()}
    terms = {
        "base": c["bb"],
        "adapted": c["aa"],
        "gain": c["aa"] - c["bb"],
        "latents": (c["ab"] - c["bb"] + c["aa"] - c["ba"]) / 2,
        "remapping": (c["ba"] - c["bb"] + c["aa"] - c["ab"]) / 2,
        "explained": (c["explained ab"] - c["bb"] + c["aa"] - c["explained ba"]) / 2,
        "adapted_tokens": c["ab"],
        "base_tokens": c["ba"],
    }
    if "shared" in c:
        terms["shared_latents"] = c["shared"]
    values = np.stack(list(terms.values()))
    n = values.shape[1]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot) / n
    low, high = np.quantile(values @ weights.T, [0.025, 0.975], axis=1)
    return {
        name: Metric(name, float(values[i].mean()), n, DEFINITIONS[name], REFERENCE, True if name in UNSIGNED else None,
                     (float(low[i]), float(high[i])))
        for i, name in enumerate(terms)
    }  # fmt: skip
