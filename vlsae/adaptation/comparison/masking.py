"""Masking curves: accuracy while the latents ranked first are kept or removed, each image under its class's mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlsae.adaptation.comparison.mask_table import MaskingCurves, MaskRow, Size
from vlsae.adaptation.comparison.site_tokens import ROLES, SiteTokens, check_labels, image_batches
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.heatmaps.maps import dictionary_site

DIRECTIONS = ("on", "off")
KS = (0, 1, 2, 5, 10, 20, 50, 100, "all")

Condition = tuple[str, str, Size, bool]  # ranking, direction, k, error kept


@torch.no_grad()
def masking_curves(
    models: Mapping[str, Backbone],
    dictionary: Dictionary,
    images: Sequence,
    labels: Sequence[int],
    class_names: Sequence[str],
    rankings: Mapping[str, np.ndarray],
    *,
    ks: Sequence[Size] = KS,
    directions: Sequence[str] = DIRECTIONS,
    error_kept: Sequence[bool] = (True,),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    roles: Sequence[str] = ROLES,
    site: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> MaskingCurves:
    """Accuracy of models while the first k latents of a ranking are kept ("on") or removed ("off").

    Tokens become `x + D(z') - D(z)`, or `D(z')` without the error, with `z'` the codes under the mask. Images of class
    c are seen under the masks of class c alone (PatchSAE's causal test, arXiv 2412.05276, section 4). Each image is
    encoded once and runs through the blocks before the site once; masks that leave an image the same codes share the
    blocks after it.

    Args:
        models: by name, such as {"base": ..., "adapted": ...}.
        dictionary: any family.
        images: sequence of images or scenes, or preprocessed pixels `[I, 3, H, W]`.
        labels: class number of every image, in `class_names`.
        class_names, templates: as for `Backbone.head`.
        rankings: by name, latents first to last: `[C, k_max]`, a row a class, or `[k_max]` for all classes alike.
        ks: sizes of the top, at most `k_max` of every ranking; "all" is the whole dictionary.
        directions: "on", "off" or both.
        error_kept: whether what the dictionary does not explain stays in place; both for both.
        roles: of the tokens that are edited.
        site: a residual or pooled site of the vision tower; the dictionary's own where None.
        batch_size: images in the blocks after the site at a time, counting every mask's.
        progress: show a progress bar.

    Returns:
        `MaskingCurves`: one row a model, mask and class, and rows of the condition "unmasked".

    Raises:
        ValueError: for labels, rankings, sizes or directions that do not fit.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> sae = TopKDictionary(192, 16, k=4)
        >>> found = masking_curves({"base": load_model("tiny")}, sae, world.scenes(4), [0, 1, 0, 1], ["cat", "dog"],
        ...                        {"dataset": np.arange(16)}, ks=(0, 2, "all"), site="vision.-2.resid_post", progress=False)
        >>> found.point("base", "dataset", "off", 0) == found.unmasked("base") == found.point("base", "dataset", "on", "all")
        True
    """
    labels = check_labels(len(images), labels, len(class_names))
    orders = {name: _order(name, ranking, dictionary, len(class_names), ks) for name, ranking in rankings.items()}
    unknown = set(directions) - set(DIRECTIONS)
    if unknown or not set(error_kept) <= {True, False}:
        raise ValueError(
            f"directions={tuple(directions)}, error_kept={tuple(error_kept)}; use 'on', 'off', True, False."
        )
    conditions = [(name, way, k, error) for name in orders for k in ks for way in directions for error in error_kept]
    classes, rows = torch.from_numpy(labels), []
    size = max(1, batch_size // max(1, len(conditions)))
    for name, model in models.items():
        tokens, head = SiteTokens(model, dictionary_site(dictionary, site), roles), model.head(class_names, templates)
        hits = torch.zeros(len(conditions) + 1, len(images), dtype=torch.bool)
        for part, batch in image_batches(images, size, f"masks, {name}", progress):
            masks = _Masks(dictionary, orders, conditions, classes[part])
            found = head(tokens.forward(model.pixels(batch), masks)).argmax(-1).cpu()
            hits[:, part] = found[masks.index] == classes[part]
        rows += _rows(name, [("", "", 0, True), *conditions], hits.numpy(), labels)
    return MaskingCurves(rows, tuple(class_names))


def _order(name: str, ranking: np.ndarray, dictionary: Dictionary, n_classes: int, ks: Sequence[Size]) -> Tensor:
    """A ranking as `[C or 1, k_max]`, after a look at it."""
    order, n = np.atleast_2d(np.asarray(ranking)), dictionary.n_latents
    sizes = [k for k in ks if k != "all"]
    if order.ndim != 2 or len(order) not in (1, n_classes) or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(
            f"Ranking {name!r} is {order.dtype} {np.shape(ranking)}; give latents [k_max] or [{n_classes}, k_max]."
        )
    if any(not isinstance(k, (int, np.integer)) or not 0 <= k <= order.shape[1] for k in sizes):
        raise ValueError(
            f"ks={tuple(ks)} were given and ranking {name!r} has {order.shape[1]} latents; use 0 to that, and 'all'."
        )
    in_order = np.sort(order, 1)
    if order.size and (in_order[:, 0].min() < 0 or in_order[:, -1].max() >= n or (np.diff(in_order) == 0).any()):
        raise ValueError(
            f"Ranking {name!r} repeats a latent or names one outside 0 to {n - 1}; name each once at most."
        )
    return torch.from_numpy(order.astype(np.int64))


@dataclass
class _Masks:
    """The variants of a batch of images: each as it is, and under every condition, equal ones once.

    Attributes:
        index: `[1 + conditions, B]`, the variant of each image under each condition, the unmasked one first.
    """

    dictionary: Dictionary
    orders: Mapping[str, Tensor]
    conditions: Sequence[Condition]
    classes: Tensor
    index: Tensor = field(init=False)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, t = x.shape[:2]
        self.flat = x.flatten(0, 1).to(self.dictionary.W_dec)
        self.codes = self.dictionary.encode_sparse(self.flat)
        self.whole = self._decode(torch.ones_like(self.codes.rows, dtype=torch.bool))
        self.image = self.codes.rows // t
        active = torch.bincount(self.image, minlength=n)
        parts, owners, known = [x], [*range(n)], {(i, "all", True): i for i in range(n)}
        index = [list(range(n))]
        for name, way, k, error in self.conditions:
            kept = self._first(name, k) if way == "on" else ~self._first(name, k)
            sizes = torch.bincount(self.image[kept], minlength=n)
            keys = [(i, self._key(name, way, int(s), int(a)), error)
                    for i, (s, a) in enumerate(zip(sizes, active, strict=True))]  # fmt: skip
            new = [key[0] for key in keys if key not in known]
            if new:
                parts.append(self._tokens(kept, error).unflatten(0, (n, t))[new].to(x))
                known |= {keys[i]: len(owners) + j for j, i in enumerate(new)}
                owners += new
            index.append([known[key] for key in keys])
        self.index = torch.tensor(index)
        return torch.cat(parts), torch.tensor(owners)

    @staticmethod
    def _key(name: str, way: str, kept: int, active: int) -> tuple | str:
        """Equal for masks that leave an image the same codes: those of one ranking are nested, so their number tells."""
        if kept in (0, active):
            return "all" if kept == active else "none"
        return name, way, kept

    def _first(self, name: str, k: Size) -> Tensor:
        """Which codes are of the first k latents of their image's class."""
        if k == "all":
            return torch.ones_like(self.codes.rows, dtype=torch.bool)
        order = self.orders[name][:, :k]
        rows = self.classes if len(order) > 1 else torch.zeros_like(self.classes)
        chosen, inverse = rows.unique(return_inverse=True)
        member = torch.zeros(len(chosen), self.dictionary.n_latents, dtype=torch.bool).scatter_(1, order[chosen], True)
        member, inverse = member.to(self.image.device), inverse.to(self.image.device)
        return member[inverse[self.image], self.codes.latents]

    def _tokens(self, kept: Tensor, error: bool) -> Tensor:
        decoded = self._decode(kept)
        return self.flat + (decoded - self.whole) if error else decoded

    def _decode(self, kept: Tensor) -> Tensor:
        c = self.codes
        return self.dictionary.decode(
            Codes(c.rows[kept], c.latents[kept], c.values[kept], c.n, c.n_latents), like=self.flat
        )


def _rows(model: str, conditions: Sequence[Condition], hits: np.ndarray, labels: np.ndarray) -> list[MaskRow]:
    """One row a condition and class that has images."""
    classes = np.unique(labels)
    members = labels == classes[:, None]
    counts = hits.astype(np.int64) @ members.T
    return [
        MaskRow(model, ranking, way, k, error, int(c), int(n), int(right))
        for (ranking, way, k, error), row in zip(conditions, counts, strict=True)
        for c, n, right in zip(classes, members.sum(1), row, strict=True)
    ]
