"""Whether one dictionary still fits both models, and training it on where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.activations.memory import TensorActivations
from vlsae.adaptation.comparison.joint import joint_tokens
from vlsae.adaptation.comparison.site_tokens import ROLES, SiteTokens, check_labels, image_batches
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.training.config import TrainConfig
from vlsae.training.loop import choose_engine
from vlsae.training.recipe import fit_to_data, make_config

LEAST_EV = 0.5  # below, most of what the model computes at the site is not in the codes
TOLERANCE = 0.05  # what the adapted model may lose beside base, in explained variance and in accuracy


@dataclass(frozen=True)
class Fit:
    """How a dictionary fits one model.

    Attributes:
        ev_centred: `1 - sum ||x - xhat||^2 / sum ||x - mean||^2` over image tokens.
        l0: active latents a token.
        dead: share of latents that no token activates.
        accuracy: of the model as it is.
        spliced: with its image tokens replaced by their reconstruction.
        error_kept: with reconstruction and error, `xhat + (x - xhat)`: must equal `accuracy`.
        n: images.
    """

    ev_centred: float
    l0: float
    dead: float
    accuracy: float
    spliced: float
    error_kept: float
    n: int


@dataclass(frozen=True)
class Validity:
    """The fits of both models and what follows.

    Attributes:
        base, adapted: the fits.
        fits: whether a comparison under this dictionary is about the models: on both it explains `LEAST_EV` of the
            variance, and on the adapted model it loses at most `TOLERANCE` more than on base, of explained variance and
            of accuracy when it is spliced in.
        verdict: the same in words.
    """

    base: Fit
    adapted: Fit
    fits: bool
    verdict: str


@torch.no_grad()
def fit_of(
    model: Backbone,
    dictionary: Dictionary,
    images: Sequence,
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    roles: Sequence[str] = ROLES,
    site: str | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Fit:
    """Explained variance, L0, dead share and spliced accuracy of a dictionary on one model, in one pass.

    Args:
        model: base or adapted; its prompt tokens are neither read nor replaced.
        dictionary: any family.
        images: sequence of images or scenes, or preprocessed pixels `[I, 3, H, W]`.
        labels: class number of every image, in `class_names`.
        class_names, templates: as for `Backbone.head`.
        roles: of the tokens that count.
        site: a residual or pooled site of the vision tower; the dictionary's own where None.
        batch_size: images a forward pass, each in three variants after the site.
        progress: show a progress bar.

    Raises:
        ValueError: for labels or a site that do not fit.
    """
    labels, head = check_labels(len(images), labels, len(class_names)), model.head(class_names, templates)
    tokens, sums = SiteTokens(model, dictionary_site(dictionary, site), roles), _Sums(dictionary)
    right = np.zeros(3, np.int64)
    for rows, batch in image_batches(images, batch_size, "fit", progress):
        predicted = head(tokens.forward(model.pixels(batch), sums.variants)).argmax(-1).cpu().numpy()
        right += (predicted.reshape(3, -1) == labels[rows]).sum(1)
    return Fit(*sums.result(), *(float(hits) / len(labels) for hits in right), len(labels))


class _Sums:
    """Running sums behind explained variance, L0 and dead share."""

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        self.n, self.active, self.error, self.squares = 0, 0, 0.0, 0.0
        self.total = torch.zeros(dictionary.d, dtype=torch.float64)
        self.fired = torch.zeros(dictionary.n_latents, dtype=torch.bool)

    def variants(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens as they are, reconstructed, and reconstructed with their error."""
        x = tokens.flatten(0, 1).to(self.dictionary.W_dec)
        codes = self.dictionary.encode_sparse(x)
        xhat = self.dictionary.decode(codes, like=x)
        self.n, self.active = self.n + len(x), self.active + len(codes.values)
        self.error += float((x - xhat).double().square().sum())
        self.squares += float(x.double().square().sum())
        self.total += x.double().sum(0).cpu()
        self.fired[codes.latents.cpu()] = True
        spliced = xhat.view_as(tokens).to(tokens)
        kept = spliced + (tokens - spliced)
        return torch.cat([tokens, spliced, kept]), torch.arange(len(tokens)).repeat(3)

    def result(self) -> tuple[float, float, float]:
        spread = self.squares - float(self.total.square().sum()) / self.n
        ev = 1 - self.error / spread if spread > 0 else float("nan")
        return ev, self.active / self.n, 1 - float(self.fired.double().mean())


def judge(base: Fit, adapted: Fit) -> Validity:
    """What two fits of one dictionary say about a comparison under it.

    Example:
        >>> base = Fit(0.9, 12, 0.1, 0.80, 0.78, 0.80, 100)
        >>> judge(base, Fit(0.88, 12, 0.1, 0.90, 0.86, 0.90, 100)).fits
        True
        >>> judge(base, Fit(0.60, 12, 0.1, 0.90, 0.30, 0.90, 100)).fits
        False
    """
    lost = [fit.accuracy - fit.spliced for fit in (base, adapted)]
    faults = [
        f"it explains less than {LEAST_EV:.0%} of the variance of {name}'s tokens"
        for name, fit in (("base", base), ("the adapted model", adapted))
        if not fit.ev_centred >= LEAST_EV
    ]
    if not adapted.ev_centred >= base.ev_centred - TOLERANCE:
        faults.append(f"it explains over {TOLERANCE:.0%} less of the adapted model's variance than of base's")
    if lost[1] > lost[0] + TOLERANCE:
        faults.append(
            f"spliced in, it costs the adapted model over {100 * TOLERANCE:.0f} points more accuracy than base"
        )
    words = " ".join(
        f"On {name} it explains {fit.ev_centred:.1%} of the variance, and accuracy goes from {fit.accuracy:.1%} to "
        f"{fit.spliced:.1%} when it is spliced in."
        for name, fit in (("base", base), ("the adapted model", adapted))
    )
    advice = "Train it on with `fine_tune` on tokens of both models, and compare again."
    verdict = f"{words} It does not fit: {'; '.join(faults)}. {advice}" if faults else f"{words} It fits both models."
    return Validity(base, adapted, not faults, verdict)


def validity(
    base: Backbone, adapted: Backbone, dictionary: Dictionary, images, labels, class_names, **options
) -> Validity:
    """Whether a dictionary fits base and adapted model, on the same images.

    Args:
        base, adapted: the models.
        dictionary, images, labels, class_names, **options: as for `fit_of`.

    Raises:
        ValueError: as `fit_of`.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.projection import ProjectionDictionary
        >>> tiny, whole = load_model("tiny"), ProjectionDictionary(192, 192, k=192)  # all coordinates: nothing is lost
        >>> found = validity(tiny, tiny, whole, world.scenes(2), [0, 1], ["cat", "dog"], site="vision.-2.resid_post",
        ...                  progress=False)
        >>> found.fits, round(found.adapted.ev_centred, 4)
        (True, 1.0)
    """
    return judge(*(fit_of(model, dictionary, images, labels, class_names, **options) for model in (base, adapted)))


def fine_tune(
    dictionary: Dictionary,
    models: Backbone | Sequence[Backbone],
    images: Sequence,
    *,
    site: str | None = None,
    roles: Sequence[str] = ROLES,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> Dictionary:
    """Train a dictionary on, from its present weights, on the image tokens of one model or of several in equal parts.

    Args:
        dictionary: whose recipe is known (`metadata["recipe"]`, as `train` and `load_dictionary` leave it); it stays
            as it is.
        models: the adapted model, or base and adapted.
        images: sequence of images or scenes, or preprocessed pixels; all tokens are held in memory.
        site: where the tokens are read; the dictionary's own where None.
        roles: of the tokens.
        batch_size: images a forward pass.
        progress: show progress bars.
        **options: fields of `TrainConfig` that differ from the recipe, such as `steps` and `lr`.

    Returns:
        A new dictionary with latents of the same numbers; `metadata["fine_tuned_on"]` names the models.

    Raises:
        ValueError: for a dictionary without a recipe, unknown options, or another family, width or transform.
    """
    models = [models] if isinstance(models, Backbone) else list(models)
    recipe = dictionary.metadata.get("recipe")
    if not recipe or not models:
        raise ValueError(
            f"{len(models)} models were given, and this dictionary {'knows' if recipe else 'does not know'} its recipe; give "
            "a model or more, and a dictionary made by `train`."
        )
    site = dictionary_site(dictionary, site)
    x = joint_tokens(models, images, site, roles=roles, batch_size=batch_size, progress=progress)
    data = TensorActivations(x)
    config = fit_to_data(
        make_config(None, None, {**recipe, "input_transform": dictionary.transform.kind, **options}), data.d
    )
    _require_same(config, dictionary)
    place = dictionary.W_dec.device
    run = choose_engine("auto", config, place, data)(data, config, None, place, None)
    run.dictionary.load_state_dict(dictionary.state_dict())
    for batch in tqdm(run.batches(), total=config.steps, desc="fine-tune", disable=not progress):
        run.advance(batch)
    found = run.finish()
    found.metadata = {**dictionary.metadata, "fine_tuned_on": [model.spec for model in models],
                      "fine_tuning": found.metadata["recipe"]}  # fmt: skip
    return found


def _require_same(config: TrainConfig, dictionary: Dictionary) -> None:
    asked = config.family, config.n_latents, config.input_transform
    if asked != (own := (dictionary.family, dictionary.n_latents, dictionary.transform.kind)):
        raise ValueError(
            f"Fine-tuning goes on with the family, number of latents and transform of the dictionary, {own}; asked for were "
            f"{asked}. Leave these out of the options."
        )
