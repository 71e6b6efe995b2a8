"""Absorption: how often a concept's own latents stay silent because more specific ones carry it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.latent_effects import Readout, as_readout, latent_effects, read, written
from vlsae.metrics.linear_probe import LinearProbe, check_labelled
from vlsae.metrics.result import Metric
from vlsae.metrics.splitting import feature_splits

EFFECTS = ("ablation", "integrated_gradients", "projection")
COSINE = {"ablation": 0.025, "integrated_gradients": 0.025, "projection": 0.1}  # of an absorbing atom, at least
MARGIN = 0.2  # lead of the absorbing latent, in gaps of the read-out
SHARE = 0.4  # of the projection, at least
GRADED_COSINE, GRADED_LATENTS = 0.1, 3  # SAEBench's graded fraction: of which atoms, and how many at most
SILENT = 1e-8
BLOCK = 512  # rows with dense codes at a time
REFERENCE = "arXiv 2409.14507"


@dataclass(frozen=True)
class Absorption:
    """What became of a concept.

    Attributes:
        rate: share of the `n` rows on which no main latent fires and another one has absorbed the concept.
        graded: mean of `fraction`.
        n: rows that have the concept and that the probe finds.
        missed: of these, rows on which no main latent fires.
        main: the main latents.
        absorbers: absorbing latents with the rows of `x` that they absorbed, most rows first.
        rows: `[n]`, the rows of `x` that were counted.
        fraction: `[n]`, what absorbing latents write along the direction, of what they and the main latents write.
    """

    rate: float
    graded: float
    n: int
    missed: int
    main: tuple[int, ...]
    absorbers: tuple[tuple[int, tuple[int, ...]], ...]
    rows: Tensor
    fraction: Tensor

    def metrics(self) -> dict[str, Metric]:
        """`absorption` (the rate, beside the share of missed rows) and `absorption_fraction`."""
        return {
            "absorption": Metric(
                "absorption", self.rate, self.n,
                "share of rows that a probe finds, on which no main latent fires and one other latent carries the concept",
                REFERENCE, False, baselines={"missed": self.missed / self.n},
            ),
            "absorption_fraction": Metric(
                "absorption_fraction", self.graded, self.n,
                "mean share of absorbing latents in what they and the main latents write along the concept's direction",
                "SAEBench, arXiv 2503.09532", False,
            ),
        }  # fmt: skip


@torch.no_grad()
def absorption(
    dictionary: Dictionary, x: Tensor, y: Tensor, probe_direction: LinearProbe | Tensor, *,
    main: Sequence[int] | None = None, effect: str = "ablation", readout: Tensor | Readout | None = None,
    cosine: float | None = None, margin: float = MARGIN, absolute: bool = False, share: float = SHARE,
) -> Absorption:  # fmt: skip
    """The absorption rate of one concept, `#{n: no main latent fires, one other carries it} / #{n: y_n, probe finds it}`.

    On a row without a main latent, the latent of the most negative effect `e_i` has absorbed the concept where
    `cos(d_i, p) >= cosine` and its lead `e_j - e_i` over the next negative one is at least the margin (Chanin et al. 2024,
    arXiv 2409.14507). The margin is `margin` times the gap `mean_{y=1} m(x) - mean_{y=0} m(x)` of the read-out `m`, so
    that neither the scale of the read-out nor rounding decides; the paper asks for a logit, `margin=1.0, absolute=True`.
    With "projection" (SAEBench, arXiv 2503.09532) no read-out is needed: the latent that writes most along `p` has
    absorbed it where `cos(d_i, p) > cosine` and `z_i <d_i, p> >= share <x - x_0, p>`, with `x_0` the decoder's bias.

    The graded fraction of a row is `a / (a + b)` with `a` the at most three largest `z_i <d_i, p>` of other latents with
    `cos(d_i, p) > .1`, and `b` the main latents' sum; it is the same for all effects. All rows are looked at, where the
    paper samples 200 and rescales.

    Args:
        dictionary: with one decoder.
        x: activations `[N, d]`.
        y: bool `[N]`, where the concept is there; both values present.
        probe_direction: a `LinearProbe`, which says by itself where it finds the concept; or a direction `[d]` such as a
            text embedding, which finds it above the middle of the mean projections of both classes.
        main: the concept's own latents; `feature_splits(codes, y)` where None.
        effect: "ablation", "integrated_gradients" or "projection".
        readout: a vector `[d]` or a function, as for `latent_effects`; the direction itself where None.
        cosine: least cosine of an absorbing atom, -1 to 1; .025 and, for "projection", .1 where None. SAEBench's
            released code has .025 there too.
        margin: least lead, 0 or more.
        absolute: whether `margin` is in the units of the read-out, rather than in gaps.
        share: least share of the projection, 0 to 1; only for "projection".

    Returns:
        An `Absorption`.

    Raises:
        ValueError: for an unknown `effect`, a read-out with "projection", NaN, other shapes, labels of one class,
            latents that do not exist, a direction that finds no row or a read-out that is not larger where the concept is.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae = ReLUDictionary(2, 2)  # a parent (1, 0), and a child whose atom has absorbed it
        >>> _ = sae.W_enc.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 2**0.5]]))
        >>> _ = sae.W_dec.data.copy_(torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]))
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> found = absorption(sae, x, x[:, 0] > 0, torch.tensor([1.0, 0.0]), main=[0])
        >>> found.rate, found.absorbers
        (0.5, ((1, (1,)),))
    """
    p, finds = _direction(dictionary, x, y, probe_direction)
    cosine = _check_options(effect, readout, cosine, margin, share)
    main = _main(dictionary, x, y, main)
    rows = ((y == 1) & finds).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("The probe finds the concept in none of the rows that have it; give a better direction.")
    atoms = written(dictionary).double()
    cosines = F.normalize(atoms, dim=1) @ p
    least = 0.0 if effect == "projection" else _least_lead(x, y, p if readout is None else readout, margin, absolute)
    fraction, absorbed, missed = [], [], 0
    for part in rows.split(BLOCK):
        codes = dictionary.encode(x[part])
        along = codes.double() * (atoms @ p)
        fraction.append(_fractions(along, cosines, main))
        silent = (codes[:, main].abs() < SILENT).all(1)
        missed += int(silent.sum())
        part, along = part[silent], along[silent]
        if effect == "projection":
            latents, ok = _most_along(along, _above_bias(dictionary, x[part]) @ p, share)
            ok &= cosines[latents] > cosine
        else:
            effects = latent_effects(dictionary, x[part], p if readout is None else readout, effect)
            latents, ok = _leaders(effects, least)
            ok &= cosines[latents] >= cosine
        absorbed += zip(latents[ok].tolist(), part[ok].tolist(), strict=True)
    fraction = torch.cat(fraction)
    return Absorption(
        len(absorbed) / len(rows), float(fraction.mean()), len(rows), missed, tuple(main), _by_latent(absorbed), rows, fraction
    )  # fmt: skip


def _direction(dictionary: Dictionary, x: Tensor, y: Tensor, probe: LinearProbe | Tensor) -> tuple[Tensor, Tensor]:
    """The unit direction `[d]` and, bool `[N]`, where it finds the concept."""
    check_labelled(x, y)
    weight = (probe.weight if isinstance(probe, LinearProbe) else probe).detach().double().to(x.device)
    if weight.shape != (dictionary.d,) or not torch.isfinite(weight).all() or not weight.any():
        raise ValueError(f"The direction is {list(weight.shape)}; give a finite vector [{dictionary.d}], not 0.")
    if x.shape[1] != dictionary.d:
        raise ValueError(f"Activations are {list(x.shape)}; this dictionary reads [N, {dictionary.d}].")
    p = F.normalize(weight, dim=0)
    if isinstance(probe, LinearProbe):
        return p, probe.score(x) > 0
    score = x.detach().double() @ p
    return p, score > (score[y == 1].mean() + score[y == 0].mean()) / 2


def _check_options(effect: str, readout, cosine: float | None, margin: float, share: float) -> float:
    """The cosine to use, after a look at all options."""
    if effect not in EFFECTS:
        raise ValueError(f"effect={effect!r} is unknown; use one of {', '.join(EFFECTS)}.")
    if effect == "projection" and readout is not None:
        raise ValueError("effect='projection' reads nothing out; leave `readout` away, or use another effect.")
    cosine = COSINE[effect] if cosine is None else cosine
    if not (-1 <= cosine <= 1 and margin >= 0 and 0 <= share <= 1):
        raise ValueError(
            f"cosine={cosine}, margin={margin}, share={share}: give -1 to 1, 0 or more, and 0 to 1, in this order."
        )
    return cosine


def _main(dictionary: Dictionary, x: Tensor, y: Tensor, main: Sequence[int] | None) -> list[int]:
    if main is None:
        return list(feature_splits(dictionary.encode(x), y).latents)
    main = [int(i) for i in main]
    if not main or min(main) < 0 or max(main) >= dictionary.n_latents:
        raise ValueError(f"main={main} must hold latents of 0 to {dictionary.n_latents - 1}, one at least.")
    return main


def _least_lead(x: Tensor, y: Tensor, readout: Tensor | Readout, margin: float, absolute: bool) -> float:
    """The margin in units of the read-out."""
    if absolute:
        return margin
    m = read(as_readout(readout), x).double()
    gap = float(m[y == 1].mean() - m[y == 0].mean())
    if gap <= 0:
        raise ValueError(
            f"The read-out is {-gap:.3g} lower where the concept is, on average; give one that rises with the concept, "
            "or a margin in its own units with absolute=True."
        )
    return margin * gap


def _above_bias(dictionary: Dictionary, x: Tensor) -> Tensor:
    """What the latents have to write of `x`."""
    none = torch.zeros(1, dictionary.n_latents, dtype=dictionary.W_dec.dtype, device=x.device)
    return x.double() - dictionary.decode(none).double()


def _fractions(along: Tensor, cosines: Tensor, main: list[int]) -> Tensor:
    """The graded fraction of rows with contributions `along [n, n_latents]`; 0 where nothing is written."""
    others = torch.where(cosines > GRADED_COSINE, along, 0.0).clamp_min(0.0)
    others[:, main] = 0.0
    absorbing = others.topk(min(GRADED_LATENTS, others.shape[1]), dim=1).values.sum(1)
    return absorbing / (absorbing + along[:, main].sum(1).clamp_min(0.0)).clamp_min(1e-300)


def _most_along(along: Tensor, whole: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The latent that writes most, and whether it is enough of the whole."""
    most, latents = along.max(1)
    return latents, (most > 0) & (most >= share * whole)


def _leaders(effects: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The latent of the most negative effect, and whether it leads the next negative one by the margin."""
    top, latents = effects.min(1)
    next_one = effects.scatter(1, latents[:, None], 0.0).amin(1).clamp_max(0.0)  # none: a lead over 0
    return latents, (top < 0) & (next_one - top >= least)


def _by_latent(absorbed: list[tuple[int, int]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    found: dict[int, list[int]] = {}
    for latent, row in absorbed:
        found.setdefault(latent, []).append(row)
    return tuple(sorted(((i, tuple(rows)) for i, rows in found.items()), key=lambda item: (-len(item[1]), item[0])))
