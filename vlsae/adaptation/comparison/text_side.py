"""What changed on the text side: class embeddings in words, and which latents a class's logit is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlsae.adaptation.comparison.site_tokens import ROLES, SiteTokens, check_labels, image_batches
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.head import Head, LinearHead
from vlsae.backbones.site import Site
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.heatmaps.maps import dictionary_site
from vlsae.metrics.latent_effects import written
from vlsae.splice.model import SpLiCE

ROWS = 2**14  # active codes whose atoms are gathered at a time


@dataclass(frozen=True)
class ClassConcepts:
    """One class embedding in words, before and after.

    Attributes:
        name: of the class.
        cosine: of both embeddings.
        before, after: concepts with their weights, strongest first.
        changes: weight after minus before, by concept, largest change first; unchanged ones are left out.
    """

    name: str
    cosine: float
    before: list[tuple[str, float]]
    after: list[tuple[str, float]]
    changes: list[tuple[str, float]]


def class_concepts(
    splice: SpLiCE, base: Backbone, adapted: Backbone, class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
) -> list[ClassConcepts]:  # fmt: skip
    """Class embeddings of two models as sparse combinations of words, one vocabulary for both.

    Args:
        splice: of the base model, whose text space the words are embedded in.
        base, adapted: with class embeddings of one space.
        class_names, templates: as for `Backbone.classifier`.

    Returns:
        One entry a class.

    Raises:
        ValueError: where a model has no fixed class embeddings (CoCoOp).

    Example:
        >>> from vlsae import load_model
        >>> tiny = load_model("tiny")
        >>> found = class_concepts(SpLiCE(tiny, "tiny", progress=False), tiny, tiny, ["cat"])[0]
        >>> found.before == found.after, found.changes
        (True, [])
    """
    embeddings = [model.classifier(class_names, templates).detach().cpu() for model in (base, adapted)]
    before, after = (splice.decompose(part.numpy(), modality="text") for part in embeddings)
    cosines = (embeddings[0] * embeddings[1]).sum(1)
    step = (after.weights - before.weights).tocsr()
    step.eliminate_zeros()
    found = []
    for i, name in enumerate(class_names):
        row = step[i]
        changes = [
            (before.texts[row.indices[j]], float(row.data[j])) for j in np.argsort(-abs(row.data), kind="stable")
        ]
        found.append(ClassConcepts(name, float(cosines[i]), before.top(i), after.top(i), changes))
    return found


@dataclass(frozen=True)
class LogitParts:
    """The logit of one class an image, as a sum: `logit = latents.sum(1) + error + bias + gap`.

    Attributes:
        latents: `[I, n_latents]`, the part of each latent, over all tokens.
        error: `[I]`, what the dictionary does not explain; with "exact" alone, else it is in `bias`.
        bias: `[I]`, what is there without any latent.
        logit: `[I]`, as the model gives it.
    """

    latents: Tensor
    error: Tensor
    bias: Tensor
    logit: Tensor

    @property
    def gap(self) -> Tensor:
        """What the parts miss of the logit, `[I]`: rounding where "exact", else curvature."""
        return self.logit - self.latents.sum(1) - self.error - self.bias


def logit_parts(
    model: Backbone,
    dictionary: Dictionary,
    images: Sequence,
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    method: str = "auto",
    steps: int = 8,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    roles: Sequence[str] = ROLES,
    site: str | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> LogitParts:
    """Which latents a class's logit comes from.

    "exact", at `vision.pooled` with a linear head `l = s w e / ||e|| + b`: latent i has `z_i s <d_i, w> / ||e||`, with the
    image's own norm. "gradient": `z_i <d_i, grad l>` summed over tokens. "integrated_gradients": the gradient's mean over
    the path from no latents to all, by the midpoints of `steps` parts; its gap goes to 0 with more of them (Sundararajan et
    al. 2017, arXiv 1703.01365, equation 1).

    Args:
        model: base or adapted; what differs between their parts for one class is what adaptation changed.
        dictionary: with one decoder, and a transform of all tokens alike.
        images: sequence of images or scenes, or preprocessed pixels `[I, 3, H, W]`.
        classes: the class of each image whose logit is taken apart, in `class_names`.
        class_names, templates: as for `Backbone.head`.
        method: as above; "auto" is "exact" where possible, else "integrated_gradients".
        steps: of the path, 1 or more.
        roles: of the tokens that count.
        site: a residual or pooled site of the vision tower; the dictionary's own where None.
        batch_size: images a forward pass.
        progress: show a progress bar.

    Returns:
        `LogitParts`.

    Raises:
        ValueError: for an unknown method, "exact" where something between site and logit is not linear, or classes or a
            dictionary that do not fit.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> found = logit_parts(load_model("tiny"), TopKDictionary(192, 16, k=4), world.scenes(2), [0, 1], ["cat", "dog"],
        ...                     site="vision.pooled", progress=False)
        >>> bool(found.gap.abs().max() < 1e-4)
        True
    """
    classes, site = check_labels(len(images), classes, len(class_names)), dictionary_site(dictionary, site)
    head, tokens = model.head(class_names, templates), SiteTokens(model, site, roles)
    linear = Site.parse(site).stream == "pooled" and isinstance(head, LinearHead)
    method = ("exact" if linear else "integrated_gradients") if method == "auto" else method
    if method not in ("exact", "gradient", "integrated_gradients") or steps < 1:
        raise ValueError(
            f"method={method!r}, steps={steps}: use 'exact', 'gradient' or 'integrated_gradients', and 1 or more."
        )
    if method == "exact" and not linear:
        raise ValueError(
            f"Between {site} and a {type(head).__name__} not everything is linear; use method='integrated_gradients', or "
            "'exact' at vision.pooled with a head of fixed class embeddings."
        )
    atoms, parts = written(dictionary), []
    for rows, batch in image_batches(images, batch_size, "logits", progress):
        pixels, wanted = model.pixels(batch), torch.from_numpy(classes[rows])
        if method == "exact":
            parts.append(_exact(head, dictionary, atoms, tokens.read(pixels)[:, 0], wanted))
        else:
            path = [1.0] if method == "gradient" else [(step + 0.5) / steps for step in range(steps)]
            parts.append(_along(tokens, head, dictionary, atoms, pixels, wanted, path))
    return LogitParts(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def _exact(head: LinearHead, dictionary: Dictionary, atoms: Tensor, x: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    x = x.to(atoms)
    codes = dictionary.encode_sparse(x)
    nothing = dictionary.decode(torch.zeros(1, dictionary.n_latents).to(atoms))
    weight = (head.scale * head.weight[wanted]).to(atoms) / x.norm(dim=1, keepdim=True)
    bias = 0.0 if head.bias is None else head.bias[wanted].to(atoms)
    latents = codes.dense() * (weight @ atoms.T)
    error = ((x - dictionary.decode(codes, like=x)) * weight).sum(1)
    logit = head(torch.nn.functional.normalize(x, dim=1)).gather(1, wanted.to(x.device)[:, None])[:, 0]
    return tuple(part.cpu() for part in (latents, error, (nothing * weight).sum(1) + bias, logit))


def _along(
    tokens: SiteTokens, head: Head, dictionary: Dictionary, atoms: Tensor, pixels: Tensor, wanted: Tensor,
    path: Sequence[float],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Codes times the gradient's mean at shares of the path, with the logits at both of its ends."""
    x = tokens.read(pixels)
    n, t = x.shape[:2]
    codes = dictionary.encode_sparse(x.flatten(0, 1).to(atoms))
    part = codes.times(atoms).view_as(x).to(x)
    gradient = torch.zeros_like(x)
    for share in path:
        at = (x - (1 - share) * part).requires_grad_()
        with torch.enable_grad():
            gradient += torch.autograd.grad(_logit(tokens, head, pixels, at, wanted).sum(), at)[0]
    gradient /= len(path)
    with torch.no_grad():
        ends = [_logit(tokens, head, pixels, at, wanted) for at in (x - part, x)]
        latents = _by_image(codes, gradient.flatten(0, 1).to(atoms), atoms, n, t)
    return tuple(found.cpu() for found in (latents, torch.zeros(n), *ends))


def _logit(tokens: SiteTokens, head: Head, pixels: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
    embeddings = tokens.forward(pixels, lambda _: (at, torch.arange(len(at))))
    return head(embeddings).gather(1, wanted.to(embeddings.device)[:, None])[:, 0]


def _by_image(codes: Codes, gradient: Tensor, atoms: Tensor, n: int, t: int) -> Tensor:
    """`sum_tokens z_i <d_i, gradient>`, `[n, n_latents]`, from active codes alone."""
    pieces = zip(codes.latents.split(ROWS), codes.rows.split(ROWS), strict=True)
    slopes = torch.cat([torch.einsum("ad,ad->a", atoms[latents], gradient[rows]) for latents, rows in pieces])
    place = (codes.rows // t) * codes.n_latents + codes.latents
    return slopes.new_zeros(n * codes.n_latents).index_add_(0, place, codes.values * slopes).view(n, -1)
