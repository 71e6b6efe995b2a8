"""From codes of tokens to images, classes and the data set: one sparse pass, never images x tokens x latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from vlsae.adaptation.comparison.site_tokens import ROLES, image_batches
from vlsae.backbones.base import Backbone
from vlsae.backbones.site import Site
from vlsae.concepts.statistics import AGGREGATORS, TAU, image_activations
from vlsae.dictionaries.base import Codes, Dictionary
from vlsae.heatmaps.maps import dictionary_site

LEVELS = ("image", "class", "dataset")


@dataclass(frozen=True)
class Aggregates:
    """Activations of images, and their sums over classes and the data set.

    `a_c = sum_{i in c} a_i` and `a_D = sum_i a_i` (arXiv 2412.05276), so `a_D = sum_c a_c` where every image
    has a class; with the operator "count" all three are exact integers.

    Attributes:
        image: sparse `[I, n]`, `a_i[s]`.
        labels: `[I]`, class id of every image, negative for none.
        n_tokens: tokens an image, the largest count.
        operator: "count", "mean" or "max" over the tokens of an image.
        tau: threshold of the counts.

    Example:
        >>> a = Aggregates(sparse.csr_matrix([[2, 0], [1, 3], [0, 1]]), np.array([7, 7, 4]), 4, "count", 0.2)
        >>> a.classes.tolist(), a.by_class.toarray().tolist(), a.dataset.tolist()
        ([4, 7], [[0, 1], [3, 3]], [3, 4])
    """

    image: sparse.csr_matrix
    labels: np.ndarray
    n_tokens: int
    operator: str
    tau: float

    @property
    def n_latents(self) -> int:
        return self.image.shape[1]

    @cached_property
    def classes(self) -> np.ndarray:
        """Ids of the classes that occur, rising, `[C]`: rows of `by_class`."""
        return np.unique(self.labels[self.labels >= 0])

    @cached_property
    def class_images(self) -> np.ndarray:
        """Images of each class, `[C]`."""
        return (self.labels[:, None] == self.classes).sum(0)

    @cached_property
    def by_class(self) -> sparse.csr_matrix:
        """`a_c`, sparse `[C, n]`."""
        return members(self.labels, self.classes) @ self.image

    @cached_property
    def dataset(self) -> np.ndarray:
        """`a_D`, `[n]`."""
        return np.asarray(self.image.sum(0)).ravel()

    @cached_property
    def class_means(self) -> sparse.csr_matrix:
        """`a_c` an image of the class, sparse `[C, n]`: comparable between classes of other sizes."""
        return sparse.csr_matrix(sparse.diags(1.0 / self.class_images) @ self.by_class)

    def level(self, name: str) -> sparse.csr_matrix:
        """The rows of a level, sparse `[I, n]`, `[C, n]` or `[1, n]`.

        Raises:
            ValueError: for a name other than "image", "class" or "dataset".
        """
        if name not in LEVELS:
            raise ValueError(f"Level {name!r} is unknown; use one of {', '.join(LEVELS)}.")
        if name == "dataset":
            return sparse.csr_matrix(self.dataset[None])
        return self.image if name == "image" else self.by_class

    def row(self, class_id: int) -> int:
        """The row of a class in `by_class`; raises ValueError for one without images."""
        at = np.flatnonzero(self.classes == class_id)
        if not len(at):
            raise ValueError(f"Class {class_id} has no images here; classes are {self.classes.tolist()[:20]}.")
        return int(at[0])


def members(labels: np.ndarray, classes: np.ndarray) -> sparse.csr_matrix:
    """Which images belong to each class, `[C, I]` of ones."""
    rows, images = (labels == classes[:, None]).nonzero()
    return sparse.csr_matrix((np.ones(len(rows), np.int64), (rows, images)), (len(classes), len(labels)))


def check_pair(base: Aggregates, adapted: Aggregates) -> None:
    """Refuse aggregates that were not made of the same images in the same way.

    Raises:
        ValueError: for these.
    """
    for what in ("n_latents", "n_tokens", "operator", "tau"):
        one, other = getattr(base, what), getattr(adapted, what)
        if one != other:
            raise ValueError(
                f"{what} is {one!r} for the base and {other!r} for the adapted model; aggregate both alike."
            )
    if not np.array_equal(base.labels, adapted.labels):
        raise ValueError(
            f"{len(base.labels)} and {len(adapted.labels)} images with unlike labels; a comparison needs the same images in "
            "the same order."
        )


def aggregate_codes(
    batches: Iterable[tuple[Codes, int]], labels: Sequence[int], *, operators: Sequence[str] = ("count",),
    taus: Sequence[float] = (TAU,), n_latents: int | None = None,
) -> dict[str, Aggregates]:  # fmt: skip
    """Aggregates of consecutive images from the codes of their tokens, for several operators and thresholds at once.

    Args:
        batches: codes of the tokens of some images, image after image, and how many images these are.
        labels: class id of every image, negative for none.
        operators, taus: as for `aggregate_sweep`.
        n_latents: needed only where there is no batch.

    Returns:
        `Aggregates` by name, as `aggregate_sweep`.

    Raises:
        ValueError: for labels that are no ids or not one an image, an unknown operator, or uneven numbers of tokens.

    Example:
        >>> z = torch.tensor([[0.5, 0.1], [0.3, 0.0], [0.0, 0.9], [0.0, 0.0]])  # two images of two tokens
        >>> aggregate_codes([(Codes.from_dense(z), 2)], [0, 1])["count>0.2"].image.toarray().tolist()
        [[2, 0], [0, 1]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"Labels are {labels.dtype} {labels.shape}; give one integer class id an image, not its name.")
    measures = _measures(operators, taus)
    parts: dict[str, list] = {name: [] for name in measures}
    n_images, n_tokens = 0, 0
    for codes, size in batches:
        n_tokens = n_tokens or codes.n // size
        if codes.n != size * n_tokens:
            raise ValueError(
                f"{size} images have {codes.n} tokens, those before had {n_tokens} each; give equally many."
            )
        n_latents = codes.n_latents
        for name, part in _rows(codes, size, n_tokens, measures).items():
            parts[name].append(part)
        n_images += size
    if n_images != len(labels):
        raise ValueError(f"{len(labels)} labels were given for {n_images} images; give one an image.")
    if n_latents is None:
        raise ValueError("There are no images; give at least one, or n_latents.")
    empty = sparse.csr_matrix((0, n_latents))
    return {
        name: Aggregates(sparse.vstack(parts[name] or [empty], "csr"), labels, n_tokens, *measure)
        for name, measure in measures.items()
    }


def _measures(operators: Sequence[str], taus: Sequence[float]) -> dict[str, tuple[str, float]]:
    """Operator and threshold by name; only counts have one."""
    unknown = [operator for operator in operators if operator not in AGGREGATORS]
    if unknown or not operators or not taus:
        raise ValueError(
            f"operators={tuple(operators)}, taus={tuple(taus)}: use some of {', '.join(AGGREGATORS)}, and a tau."
        )
    named = {}
    for operator in operators:
        for tau in taus if operator == "count" else (0.0,):
            named[f"count>{tau:g}" if operator == "count" else operator] = (operator, float(tau))
    return named


def _rows(codes: Codes, size: int, n_tokens: int, measures: dict) -> dict[str, sparse.csr_matrix]:
    """The images of one batch under every measure; all but the counts are the same for every threshold."""
    rows, latents, values = (
        np.ascontiguousarray(part.cpu().numpy()) for part in (codes.rows, codes.latents, codes.values.float())
    )
    found, last = {}, None
    for name, (operator, tau) in measures.items():
        if last is None or operator == "count":
            last = image_activations(rows, latents, values, n_tokens, codes.n_latents, tau)
        data = last[operator].astype(np.int64 if operator == "count" else np.float64)
        table = sparse.csr_matrix((data, (last["image"], last["latent"])), (size, codes.n_latents))
        table.eliminate_zeros()
        found[name] = table
    return found


def aggregate_sweep(
    model: Backbone,
    dictionary: Dictionary,
    images: Sequence,
    labels: Sequence[int],
    *,
    operators: Sequence[str] = ("count",),
    taus: Sequence[float] = (TAU,),
    batch_size: int = 16,
    site: str | None = None,
    progress: bool = True,
) -> dict[str, Aggregates]:
    """`aggregate` for several operators and thresholds in one pass over the images.

    Args:
        model, dictionary, images, labels, batch_size, site, progress: as for `aggregate`.
        operators: some of "count", "mean", "max".
        taus: thresholds of the counts.

    Returns:
        `Aggregates` by name: "count>0.2" for every tau, "mean", "max".

    Raises:
        ValueError: as `aggregate`.
    """
    batches = _codes_of_images(model, dictionary, images, dictionary_site(dictionary, site), batch_size, progress)
    return aggregate_codes(batches, labels, operators=operators, taus=taus, n_latents=dictionary.n_latents)


def aggregate(
    model: Backbone,
    dictionary: Dictionary,
    images: Sequence,
    labels: Sequence[int],
    tau: float = TAU,
    operator: str = "count",
    batch_size: int = 16,
    site: str | None = None,
    progress: bool = True,
) -> Aggregates:
    """Activations of images under a dictionary, and their sums over classes and the data set.

    `a_i[s] = sum_j 1[h_ij[s] > tau]` over the tokens j of image i (arXiv 2412.05276), or the mean or the
    maximum of `h_ij[s]` over all tokens. Of codes with both signs, "count" sees those above tau only, so a strongly
    negative code does not count; "mean" lets signs cancel, and "max" is at least 0 wherever a token is silent.

    Args:
        model: the backbone; its CLS and patch tokens are read, its prompt and register tokens never.
        dictionary: whose latents.
        images: sequence of images or scenes, or preprocessed pixels `[I, 3, H, W]`.
        labels: class id of every image, negative for none; ids, since names may occur twice.
        tau: threshold above which a token counts, in the units of the codes.
        operator: "count", "mean" or "max".
        batch_size: images at a time.
        site: where the dictionary reads; its own where None.
        progress: show a progress bar.

    Returns:
        `Aggregates`; memory grows with the latents active in each image, not with their tokens.

    Raises:
        ValueError: for labels that do not fit, an unknown operator, no images, or a site outside the vision tower.

    Example:
        >>> from vlsae import load_model, world
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> sae, scenes = TopKDictionary(192, 8, k=2), world.scenes(4)
        >>> a = aggregate(load_model("tiny"), sae, scenes, [0, 0, 1, 1], site="vision.-2.resid_post", progress=False)
        >>> a.image.shape, a.by_class.shape, a.n_tokens, int(a.dataset.sum() - a.by_class.sum())
        ((4, 8), (2, 8), 65, 0)
    """
    found = aggregate_sweep(model, dictionary, images, labels, operators=(operator,), taus=(tau,), batch_size=batch_size,
                            site=site, progress=progress)  # fmt: skip
    return next(iter(found.values()))


@torch.no_grad()
def _codes_of_images(
    model: Backbone, dictionary: Dictionary, images: Sequence, site: str, batch_size: int, progress: bool
) -> Iterator[tuple[Codes, int]]:
    """Codes of the counted tokens, batch after batch."""
    site_read = Site.parse(site)
    if site_read.tower != "vision":
        raise ValueError(
            f"{site} is not in the vision tower; images are aggregated over a site such as vision.-2.resid_post."
        )
    kept = [0] if site_read.stream == "pooled" else [i for i, role in enumerate(model.token_roles) if role in ROLES]
    for _, batch in image_batches(images, batch_size, "aggregation", progress):
        tokens = model.tokens(batch, site)[:, kept]
        yield dictionary.encode_sparse(tokens.flatten(0, 1).to(dictionary.W_dec.device)), len(batch)
