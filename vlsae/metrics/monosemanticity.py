"""How alike the images are on which a latent fires: the monosemanticity score, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Codes
from vlsae.metrics.result import Metric

DEFINITION = "mean over defined latents of sum_{n<m} a_n a_m cos(e_n, e_m) / sum_{n<m} a_n a_m, a from its minimum"
REFERENCE = "arXiv 2504.02821, as the weighted mean that the authors' code computes"


class MonosemanticitySums:
    """Sums over images from which every latent's monosemanticity follows; any number of batches, in any order.

    With unit embeddings the sums over pairs are squares of sums over images,
    `MS = (||sum a e||^2 - sum a^2) / ((sum a)^2 - sum a^2)` with `a` counted from the latent's minimum. The maximum of
    the paper's min-max scaling cancels, and the minimum can be taken off afterwards: one pass is enough.

    Args:
        n_latents: number of latents.
        width: width of the embeddings.

    Attributes:
        n: images seen; lowest: `[n_latents]`, the least activation seen; above: `[n_latents]`, images above it.

    Example:
        >>> sums = MonosemanticitySums(1, 2)
        >>> sums.add(torch.ones(1, 1), torch.tensor([[1.0, 0.0]]))
        >>> sums.add(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
        >>> round(sums.scores().item(), 6)
        0.6
    """

    def __init__(self, n_latents: int, width: int):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.n_latents, self.width, self.n = n_latents, width, 0
        self.lowest = torch.full((n_latents,), torch.inf, dtype=torch.float64)
        self._at_lowest = torch.zeros(n_latents, dtype=torch.long)
        self._ae, self._a, self._aa, self._wa = zeros(n_latents, width), *(zeros(n_latents) for _ in range(3))
        self._e, self._w, self._ww = zeros(width), zeros(), zeros()

    @property
    def above(self) -> Tensor:
        return self.n - self._at_lowest

    def add(self, codes: Tensor | Codes, embeddings: Tensor, weights: Tensor | None = None) -> None:
        """Count a batch of images.

        Args:
            codes: one activation an image and latent, `[B, n_latents]` or `Codes` of B vectors (no dense codes are made).
            embeddings: `[B, width]` of the same images, of any length but 0.
            weights: `[B]`, how much each image counts; pairs of an image with itself never do. 1 where None.

        Raises:
            ValueError: for shapes that do not fit, values that are not finite, or embeddings of length 0.
        """
        size, n_latents = (codes.n, codes.n_latents) if isinstance(codes, Codes) else codes.shape
        if n_latents != self.n_latents or embeddings.shape != (size, self.width):
            raise ValueError(
                f"Codes are [{size}, {n_latents}] and embeddings {list(embeddings.shape)}; expected [B, {self.n_latents}] "
                f"and [B, {self.width}], one row an image in the same order."
            )
        values = (codes.values if isinstance(codes, Codes) else codes).detach().double().cpu()
        e = embeddings.detach().double().cpu()
        if not values.isfinite().all() or not e.isfinite().all() or not (e != 0).any(1).all():
            raise ValueError("Codes or embeddings hold NaN, infinite values or rows of zeros; leave such images out.")
        if size == 0:
            return
        e = F.normalize(e, dim=1)
        w = torch.ones(size, dtype=torch.float64) if weights is None else weights.detach().double().cpu()
        if isinstance(codes, Codes):
            low, count = self._add_sparse(codes.rows.cpu(), codes.latents.cpu(), values, e, w)
        else:
            weighted = values * w[:, None]
            self._ae += weighted.T @ e
            self._a += weighted.sum(0)
            self._aa += weighted.square().sum(0)
            self._wa += (weighted * w[:, None]).sum(0)
            low = values.amin(0)
            count = (values == low).sum(0)
        self._see(low, count, size)
        self._e += w @ e
        self._w += w.sum()
        self._ww += w.square().sum()

    def _add_sparse(self, rows: Tensor, latents: Tensor, values: Tensor, e: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Adds sums over active codes; least activation of every latent in the batch, and how often it is there."""
        at = latents.sort(stable=True)
        rows, latents, values = rows[at.indices], at.values, values[at.indices]
        weighted = values * w[rows]
        self._ae += Codes(latents, rows, weighted, self.n_latents, len(e)).times(e)  # codes with sides exchanged
        self._a.index_add_(0, latents, weighted)
        self._aa.index_add_(0, latents, weighted.square())
        self._wa.index_add_(0, latents, weighted * w[rows])
        silent = len(e) - torch.bincount(latents, minlength=self.n_latents)
        low = torch.full_like(self.lowest, torch.inf).scatter_reduce(0, latents, values, "amin")
        low = torch.where(silent > 0, low.clamp_max(0.0), low)
        lowest = torch.bincount(latents[values == low[latents]], minlength=self.n_latents)
        return low, lowest + torch.where(low == 0, silent, 0)

    def _see(self, low: Tensor, count: Tensor, size: int) -> None:
        """Count the least activations `[n_latents]` of `size` more images, each met `count` times."""
        self._at_lowest = torch.where(low < self.lowest, 0, self._at_lowest) + torch.where(low <= self.lowest, count, 0)
        self.lowest = torch.minimum(self.lowest, low)
        self.n += size

    def merge(self, other: MonosemanticitySums) -> None:
        """Add what another has seen of other images; exact up to rounding, in any order.

        Raises:
            ValueError: for sums of other latents or another encoder.
        """
        if (other.n_latents, other.width) != (self.n_latents, self.width):
            raise ValueError(
                f"Sums of {other.n_latents} latents and width {other.width} cannot join those of {self.n_latents} and "
                f"{self.width}; merge sums of one dictionary and one encoder."
            )
        self._see(other.lowest, other._at_lowest, other.n)
        for name in ("_ae", "_a", "_aa", "_wa", "_e", "_w", "_ww"):
            getattr(self, name).add_(getattr(other, name))

    def scores(self, floor: float | Tensor | None = None) -> Tensor:
        """Scores `[n_latents]`, -1 to 1 in float64; NaN where fewer than two images lie above the floor.

        Args:
            floor: the activation that counts as none, a number or `[n_latents]`; each latent's minimum where None, as
                in the paper. A floor of 0 makes scores blind to images on which a latent is silent.

        Raises:
            ValueError: for a floor above an activation, which would make weights of pairs negative.
        """
        floor = self.lowest if floor is None else torch.as_tensor(floor, dtype=torch.float64).expand(self.n_latents)
        if (floor > self.lowest).any():
            raise ValueError(
                f"The floor {float(floor.max())} lies above the activation {float(self.lowest.min())}; give at most the "
                "least activation, or the positive and the negative part of signed codes on their own."
            )
        a = self._a - floor * self._w
        aa = self._aa - 2 * floor * self._wa + floor.square() * self._ww
        total = (self._ae - floor[:, None] * self._e).square().sum(1)
        # a floor that is not the minimum has everything above it
        defined = torch.where(floor == self.lowest, self.above, self.n) >= 2
        pairs = a.square() - aa
        # rounding leaves less than 1e-12 of the square where all pairs have weight 0
        return torch.where(defined & (pairs > 1e-12 * a.square()), (total - aa) / pairs, torch.nan)


@dataclass(frozen=True)
class Monosemanticity:
    """Scores of all latents.

    Attributes:
        scores: `[n_latents]`; NaN for a dead latent, one that does not vary or that lies above its minimum on one image.
        low, high: `[n_latents]`, 95 % intervals over images; NaN without a bootstrap.
        above: `[n_latents]`, on how many images a latent lies above its minimum; intervals of few are too narrow.
        metric: the mean over latents that have a score, with its interval; `baselines` hold the share of those without
            (`undefined`) and the mean cosine of all pairs of images (`all_pairs`), which a latent alike on all would get.
    """

    scores: Tensor
    low: Tensor
    high: Tensor
    above: Tensor
    metric: Metric


def monosemanticity(
    codes: Tensor | Codes,
    embeddings: Tensor,
    *,
    floor: float | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Monosemanticity:
    """The monosemanticity score of every latent: the mean similarity of image pairs, weighted by both activations.

    `MS_k = sum_{n<m} a_n a_m cos(e_n, e_m) / sum_{n<m} a_n a_m`, where `a` is latent k's activation from its minimum over
    the images (Pach et al. 2025, arXiv 2504.02821), in time linear in the images. The embeddings must come
    from an encoder other than the one explained: in its own space a model's latents are alike by construction. Codes of
    both signs have two meanings a latent; give `z.clamp(min=0)` and `(-z).clamp(min=0)`.

    Args:
        codes: `[N, n_latents]`, or `Codes` of N vectors: one an image, such as of the class token or a mean over tokens.
        embeddings: `[N, e]` of the same images.
        floor: the activation that counts as none; each latent's minimum where None.
        bootstrap: reweightings of the images for 95 % intervals, 0 for none; exponential weights (Rubin 1981). Percentiles
            are moved by the bootstrap's bias, so that an interval holds its score, and may reach beyond 1.
            An image is no pair with itself, whose cosine of 1 would raise every score; minima stay those of all images.
        seed: of the weights.

    Returns:
        A `Monosemanticity`. Latents without a score are NaN, left out of the mean, and counted.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, fewer than two images, or a negative bootstrap.

    Example:
        >>> z = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> found = monosemanticity(z, torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
        >>> found.scores.tolist(), found.metric.baselines["undefined"]
        ([0.6..., nan], 0.5)
    """
    if len(embeddings) < 2 or bootstrap < 0:
        raise ValueError(f"{len(embeddings)} images with bootstrap={bootstrap}: give at least 2 images, and 0 or more.")
    n_latents = codes.n_latents if isinstance(codes, Codes) else codes.shape[-1]
    sums = MonosemanticitySums(n_latents, embeddings.shape[-1])
    sums.add(codes, embeddings)
    scores = sums.scores(floor)
    unit = F.normalize(embeddings.detach().double().cpu(), dim=1)
    n = len(unit)
    baselines = {
        "undefined": scores.isnan().double().mean().item(),
        "all_pairs": ((unit.sum(0).square().sum() - n) / (n * (n - 1))).item(),
    }
    low = high = torch.full_like(scores, torch.nan)
    ci = None
    if bootstrap:
        draws = torch.stack(
            list(_reweighted(codes, embeddings, sums.lowest if floor is None else floor, bootstrap, seed))
        )
        draws = torch.where(scores.isnan(), torch.nan, draws)
        low, high = _interval(draws, scores)
        means = _interval(draws.nanmean(1), scores.nanmean())
        ci = (means[0].item(), means[1].item())
    metric = Metric("monosemanticity", scores.nanmean().item(), n, DEFINITION, REFERENCE, ci=ci, baselines=baselines)
    return Monosemanticity(scores, low, high, sums.above, metric)


def _reweighted(codes: Tensor | Codes, embeddings: Tensor, floor: float | Tensor, bootstrap: int, seed: int):
    """Scores `[n_latents]` with other weights of the images.

    Drawing whole images would leave rare latents without a pair in many resamples, and take them out of the mean there:
    its interval would miss the mean itself.
    """
    generator = torch.Generator().manual_seed(seed)
    n_latents = codes.n_latents if isinstance(codes, Codes) else codes.shape[-1]
    for _ in range(bootstrap):
        weights = torch.empty(len(embeddings), dtype=torch.float64).exponential_(generator=generator)
        sums = MonosemanticitySums(n_latents, embeddings.shape[-1])
        sums.add(codes, embeddings, weights)
        yield sums.scores(floor)


def _interval(draws: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """The 2.5 % and 97.5 % quantiles over the first axis, NaN left out, moved so that the median is the estimate.

    A ratio of sums over few images is biased under weights that vary: draws lie below the score on average, and in a mean
    over many latents this bias exceeds the spread. A reflected ("basic") interval would miss the score on its other side.
    """
    low, middle, high = draws.nanquantile(torch.tensor([0.025, 0.5, 0.975], dtype=draws.dtype), dim=0)
    return estimate + (low - middle), estimate + (high - middle)
