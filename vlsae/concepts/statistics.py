"""Everything about a dictionary's latents that one pass over the activations can tell, exact and mergeable."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vlsae.activations.reader import ActivationStore
from vlsae.concepts import statistics_kernels as kernels
from vlsae.dictionaries.base import Codes, Dictionary

AGGREGATORS = ("count", "mean", "max")
TAU = 0.2  # PatchSAE's threshold of a patch count
HISTOGRAM_EDGES = np.concatenate([[0.0], 10.0 ** np.linspace(-4, 4, 65)])


@dataclass
class LatentStatistics:
    """Sums over images and tokens from which every per-latent statistic follows.

    Attributes:
        n_images, n_tokens: what was seen.
        token_count: `[n]` tokens on which the latent is active.
        image_count: `[n]` images with any active token.
        value_sum: `[n]` sum of its activations.
        histogram: `[n, bins]` counts of positive activations over HISTOGRAM_EDGES.
        top_images, top_image_values: `[n, N]` image numbers by mean activation over tokens, best first; -1 pads.
        top_patches, top_patch_values: `[n, N, 2]` image and token numbers by activation; -1 pads.
        class_sums: aggregator -> `[classes, n]`, sums over the images of each class of the image activation.
        class_images: `[classes]` images of each class.
    """

    n_latents: int
    n_classes: int
    n_top: int
    tau: float = TAU
    n_images: int = 0
    n_tokens: int = 0
    token_count: np.ndarray = field(init=False)
    image_count: np.ndarray = field(init=False)
    value_sum: np.ndarray = field(init=False)
    histogram: np.ndarray = field(init=False)
    top_images: np.ndarray = field(init=False)
    top_image_values: np.ndarray = field(init=False)
    top_patches: np.ndarray = field(init=False)
    top_patch_values: np.ndarray = field(init=False)
    class_sums: dict[str, np.ndarray] = field(init=False)
    class_images: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n, classes, top = self.n_latents, self.n_classes, self.n_top
        self.token_count = np.zeros(n, np.int64)
        self.image_count = np.zeros(n, np.int64)
        self.value_sum = np.zeros(n, np.float64)
        self.histogram = np.zeros((n, len(HISTOGRAM_EDGES) - 1), np.int64)
        self.top_images = np.full((n, top), -1, np.int64)
        self.top_image_values = np.zeros((n, top), np.float32)
        self.top_patches = np.full((n, top, 2), -1, np.int64)
        self.top_patch_values = np.zeros((n, top), np.float32)
        self.class_sums = {name: np.zeros((classes, n), np.float64) for name in AGGREGATORS}
        self.class_images = np.zeros(classes, np.int64)

    # ---- collecting ----------------------------------------------------------------------------------------------

    def update(self, z: Tensor, first_image: int, labels: np.ndarray | None = None) -> None:
        """Add the codes of consecutive images, `z [images, tokens, n_latents]`, with class numbers (-1: none)."""
        self.add(Codes.from_dense(z.flatten(0, 1).float()), len(z), first_image, labels)

    def add(self, codes: Codes, n_images: int, first_image: int, labels: np.ndarray | None = None) -> None:
        """The same from sparse codes of `n_images` images of equally many tokens: work grows with active codes alone."""
        if codes.n_latents != self.n_latents or (
            labels is not None and len(labels) and labels.max() >= self.n_classes > 0
        ):
            raise ValueError(
                f"Codes of {codes.n_latents} latents, with labels up to {labels.max() if labels is not None else None}, do "
                f"not fit statistics of {self.n_latents} latents and {self.n_classes} classes."
            )
        n_tokens = codes.n // n_images
        rows, latents, values = (
            np.ascontiguousarray(part.cpu().numpy()) for part in (codes.rows, codes.latents, codes.values.float())
        )
        self.n_images += n_images
        self.n_tokens += codes.n
        kernels.count_codes(latents, values, HISTOGRAM_EDGES, self.token_count, self.value_sum, self.histogram)
        images, tokens = np.divmod(rows, n_tokens)
        numbers = np.stack([images + first_image, tokens], 1)
        kernels.keep_best(self.top_patch_values, self.top_patches, latents, values, numbers)
        pairs = image_activations(rows, latents, values, n_tokens, self.n_latents, self.tau)
        self.image_count += np.bincount(pairs["latent"][pairs["max"] > 0], minlength=self.n_latents)
        numbers, kept = (pairs["image"] + first_image)[:, None], self.top_images.reshape(*self.top_images.shape, 1)
        kernels.keep_best(self.top_image_values, kept, pairs["latent"], pairs["mean"], numbers)
        if labels is not None and self.n_classes:
            label = labels[pairs["image"]].astype(np.int64)
            known = label >= 0
            for name in AGGREGATORS:
                kernels.add_at(self.class_sums[name], label[known], pairs["latent"][known], pairs[name][known])
            self.class_images += np.bincount(labels[labels >= 0], minlength=self.n_classes)

    def merge(self, other: LatentStatistics) -> LatentStatistics:
        """The statistics of both parts together; image numbers must already be global. Changes and returns self."""
        if (self.n_latents, self.n_classes, self.n_top, self.tau) != (
            other.n_latents, other.n_classes, other.n_top, other.tau,
        ):  # fmt: skip
            raise ValueError("Statistics of different dictionaries, classes, top sizes or thresholds cannot be merged.")
        for name in ("n_images", "n_tokens", "token_count", "image_count", "value_sum", "histogram", "class_images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in AGGREGATORS:
            self.class_sums[name] = self.class_sums[name] + other.class_sums[name]
        for values_name, ids_name in (("top_image_values", "top_images"), ("top_patch_values", "top_patches")):
            values, ids = (
                np.array(getattr(self, values_name)),
                np.array(getattr(self, ids_name)),
            )  # loaded ones are fixed
            others, other_ids = getattr(other, values_name), np.asarray(getattr(other, ids_name))
            ids_of, other_ids = (part.reshape(*part.shape[:2], -1) for part in (ids, other_ids))
            at = np.nonzero(other_ids[..., 0] >= 0)
            kernels.keep_best(values, ids_of, at[0], others[at], other_ids[at])
            setattr(self, values_name, values)
            setattr(self, ids_name, ids)
        return self

    # ---- what follows from the sums ------------------------------------------------------------------------------

    @property
    def token_density(self) -> np.ndarray:
        """Share of tokens on which a latent is active, `[n]`."""
        return self.token_count / max(1, self.n_tokens)

    @property
    def image_density(self) -> np.ndarray:
        """Share of images in which a latent is active anywhere: PatchSAE's activated frequency, `[n]`."""
        return self.image_count / max(1, self.n_images)

    @property
    def mean_activation(self) -> np.ndarray:
        """Mean of the positive activations, `[n]`; NaN for dead latents."""
        return np.divide(self.value_sum, self.token_count, out=np.full(self.n_latents, np.nan),
                         where=self.token_count > 0)  # fmt: skip

    @property
    def alive(self) -> np.ndarray:
        """Whether a latent was active at all, bool `[n]`."""
        return self.token_count > 0

    def class_share(self, aggregator: str = "mean") -> np.ndarray:
        """Share of a latent's activation that falls on each class, `[classes, n]`; columns sum to 1, or NaN."""
        if aggregator not in AGGREGATORS:
            raise ValueError(f"Unknown aggregator {aggregator!r}; use one of {', '.join(AGGREGATORS)}.")
        return shares_of_classes(self.class_sums[aggregator])

    def label_entropy(self, aggregator: str = "mean") -> np.ndarray:
        """`-sum_c p_c ln p_c` of `class_share`, `[n]` in nats: 0 for one class, ln C for all alike; NaN if silent."""
        if self.n_classes == 0:
            return np.full(self.n_latents, np.nan)
        return entropy_of_shares(self.class_share(aggregator))

    def label_std(self, aggregator: str = "mean") -> np.ndarray:
        """Standard deviation over classes of the class share, `[n]`: 0 where all classes are alike."""
        return self.class_share(aggregator).std(0) if self.n_classes else np.full(self.n_latents, np.nan)

    def save(self, folder: str | Path) -> Path:
        """Write as `.npy` files, which can be memory-mapped, and `statistics.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in self._arrays().items():
            np.save(folder / f"{name}.npy", value)
        scalars = {k: getattr(self, k) for k in ("n_latents", "n_classes", "n_top", "tau", "n_images", "n_tokens")}
        (folder / "statistics.json").write_text(json.dumps({"schema": 1, **scalars}, indent=1))
        return folder

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return {**arrays, **{f"class_{name}": value for name, value in self.class_sums.items()}}

    @classmethod
    def load(cls, folder: str | Path) -> LatentStatistics:
        """Read what `save` wrote; raises ValueError where something is missing."""
        folder = Path(folder)
        if not (folder / "statistics.json").exists():
            raise ValueError(f"{folder} holds no statistics; write them with `vlsae stats`.")
        scalars = json.loads((folder / "statistics.json").read_text())
        result = cls(scalars["n_latents"], scalars["n_classes"], scalars["n_top"], scalars["tau"])
        result.n_images, result.n_tokens = scalars["n_images"], scalars["n_tokens"]
        for name in result._arrays():
            value = np.load(folder / f"{name}.npy", mmap_mode="r")
            if name.startswith("class_") and name != "class_images":
                result.class_sums[name.removeprefix("class_")] = value
            else:
                setattr(result, name, value)
        return result


def shares_of_classes(class_sums: np.ndarray) -> np.ndarray:
    """Share of each class in a latent's activation, from sums `[classes, n]`: columns sum to 1, or are NaN if silent."""
    total = class_sums.sum(0)
    return np.divide(class_sums, total, out=np.full(class_sums.shape, np.nan), where=total > 0)


def entropy_of_shares(share: np.ndarray) -> np.ndarray:
    """`-sum_c p_c ln p_c` of shares `[classes, n]`, `[n]` in nats.

    Example:
        >>> entropy_of_shares(np.array([[0.5, 1.0], [0.5, 0.0]])).round(4).tolist()
        [0.6931, 0.0]
    """
    return np.abs((share * np.log(np.where(share > 0, share, 1.0))).sum(0))


def image_activations(rows, latents, values, n_tokens: int, n_latents: int, tau: float) -> dict[str, np.ndarray]:
    """Activations of images: one entry for every image and latent that is active in it.

    Args:
        rows: token numbers, rising; `n_tokens` an image.
        latents, values: of every code.
        n_tokens, n_latents: tokens an image, and all latents.
        tau: threshold of the counts.

    Returns:
        Parallel arrays "image", "latent", and by aggregator "count" (tokens above tau), "mean" and "max" over all tokens.

    Example:
        >>> values = np.array([0.5, 0.25], np.float32)
        >>> one = image_activations(np.array([0, 1]), np.array([3, 3]), values, 2, 4, tau=0.2)
        >>> one["count"].tolist(), one["mean"].tolist()
        ([2], [0.375])
    """
    images, owners, sizes, above, sums, largest = kernels.images_of_codes(
        rows, latents, values, n_tokens, n_latents, tau
    )
    return {
        "image": images, "latent": owners, "count": above, "mean": (sums / n_tokens).astype(np.float32),
        "max": np.where(sizes < n_tokens, np.maximum(largest, 0), largest),
    }  # fmt: skip


def latent_statistics(
    dictionary: Dictionary,
    store: ActivationStore,
    *,
    n_top: int = 16,
    n_classes: int | None = None,
    labels: np.ndarray | None = None,
    tau: float = TAU,
    batch_images: int = 32,
    progress: bool = True,
) -> LatentStatistics:
    """One streaming pass of a store through a dictionary.

    Args:
        dictionary: whose latents.
        store: activations; only its patches, CLS or whatever it holds are seen. Prompt tokens never are.
        n_top: reference images and patches kept a latent.
        n_classes: number of classes; from the store's class names where None.
        labels: class number of every image; the store's where None.
        tau: threshold above which a patch counts (PatchSAE: 0.2).
        batch_images: images at a time.
        progress: show a progress bar.

    Returns:
        `LatentStatistics`.

    Raises:
        ValueError: when the dictionary has another width than the store.
    """
    if dictionary.d != store.d:
        raise ValueError(f"The dictionary reads width {dictionary.d}, but the store at {store.path} has {store.d}.")
    labels = np.asarray(store.labels if labels is None else labels)
    n_classes = len(store.class_names) if n_classes is None else n_classes
    if labels.size and labels.max() >= n_classes:
        n_classes = int(labels.max()) + 1
    result = LatentStatistics(dictionary.n_latents, n_classes, n_top, tau)
    with torch.no_grad(), tqdm(total=store.n_images, desc="statistics", unit="image", disable=not progress) as bar:
        for start, x in store.batches(batch_images):
            codes = dictionary.encode_sparse(x.flatten(0, 1).to(dictionary.W_dec.device))
            result.add(codes, len(x), start, labels[start : start + len(x)])
            bar.update(len(x))
    return result
