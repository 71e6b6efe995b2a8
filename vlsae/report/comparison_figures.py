"""The plots of a comparison of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from vlsae.adaptation.comparison.mask_table import MaskingCurves
from vlsae.adaptation.comparison.overlap import Overlap
from vlsae.report.figures import clean, new_figure, png

LEVELS = {"image": ("images", "#0072B2", "o"), "class": ("classes", "#D55E00", "s"),
          "dataset": ("data set", "#009E73", "D")}  # fmt: skip
RANKINGS = {"class": ("the class's own latents first", "#0072B2"), "dataset": ("the data set's latents first", "#D55E00"),
            "random": ("latents in random order", "#7f7f7f")}  # fmt: skip
KINDS = {"unchanged": ("not significantly changed", "#b5bcc4"), "amplified": ("amplified", "#0072B2"),
         "weakened": ("weakened", "#E69F00"), "gained": ("gained", "#D55E00"), "lost": ("lost", "#009E73")}  # fmt: skip
MARKS = {"unchanged": ".", "amplified": "^", "weakened": "v", "gained": "P", "lost": "X"}


def overlap_curves(overlaps: Mapping[str, Overlap]) -> bytes:
    """Top-k overlap at every level over k, with intervals and the random baseline, as PNG."""
    fig = new_figure(9.4, 4.0)
    ax = fig.subplots()
    for level, found in overlaps.items():
        label, color, mark = LEVELS[level]
        metrics = list(found.top_k.values())
        ax.plot(found.ks, [m.value for m in metrics], marker=mark, color=color, linewidth=2,
                label=f"{label} (n = {metrics[0].n:,})")  # fmt: skip
        if all(m.ci for m in metrics):
            low, high = np.array([m.ci for m in metrics]).T
            ax.fill_between(found.ks, low, high, color=color, alpha=0.18, linewidth=0)
        ax.plot(found.ks, [m.baselines["random"] for m in metrics], ":", color=color, linewidth=1.4)
    ax.plot([], [], ":", color="#57606a", label="dotted: random latents of either model")
    ax.set(xscale="log", ylim=(0, 1.03), xlabel="k, latents at the top", ylabel="shared share of the top k")
    ax.set_xticks(found.ks, [str(k) for k in found.ks])
    ax.minorticks_off()
    ax.set_title("Latents that base and adapted model share; bands: 95 % over images", loc="left", fontsize=11)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    clean(ax)
    return png(fig)


def change_scatter(before: np.ndarray, after: np.ndarray, kinds: Sequence[str], unit: str, title: str) -> bytes:
    """Activation of latents before and after adaptation, marked by what happened to them, as PNG.

    Args:
        before, after: activation of each entry; kinds: of each.
        unit: what is counted; title: of the figure.
    """
    fig = new_figure(6.6, 5.6)
    ax = fig.subplots()
    positive = np.concatenate([before[before > 0], after[after > 0]])
    floor = 0.5 * positive.min() if len(positive) else 1.0
    kinds = np.asarray(kinds)
    for kind, (label, color) in KINDS.items():
        at = kinds == kind
        if at.any():
            ax.scatter(np.maximum(before[at], floor), np.maximum(after[at], floor), s=14 if kind == "unchanged" else 34,
                       marker=MARKS[kind], color=color, linewidths=0, alpha=0.75, label=f"{label}: {at.sum():,}")  # fmt: skip
    ends = [floor, max(positive.max(), floor) * 1.3 if len(positive) else 2 * floor]
    ax.plot(ends, ends, color="#57606a", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel=f"base: {unit}", ylabel=f"adapted: {unit}")
    ax.set_title(title, loc="left", fontsize=11)
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    clean(ax)
    return png(fig)


def masking_plot(curves: MaskingCurves, n_latents: int) -> bytes:
    """Accuracy of base and adapted model while latents are kept or removed, error kept, as PNG.

    Args:
        curves: with models "base" and "adapted" and rankings of `RANKINGS`.
        n_latents: where "all" stands on the axis.
    """
    fig = new_figure(9.6, 4.4)
    axes = fig.subplots(1, 2, sharey=True)
    places = {row.k: n_latents if row.k == "all" else row.k for row in curves.rows if row.direction}
    sizes = sorted(places, key=places.get)
    x = [places[k] for k in sizes]
    for ax, direction, verb in zip(axes, ("on", "off"), ("kept", "removed"), strict=True):
        for model, style in (("base", "-"), ("adapted", "--")):
            for ranking, (label, color) in RANKINGS.items():
                points = [curves.point(model, ranking, direction, k) for k in sizes]
                ax.plot(
                    x,
                    [p.accuracy for p in points],
                    style,
                    color=color,
                    linewidth=2,
                    label=label if style == "-" else None,
                )
                ax.fill_between(x, *zip(*(p.band for p in points), strict=True), color=color, alpha=0.1, linewidth=0)
            ax.axhline(curves.unmasked(model).accuracy, color="#1b1f24", linewidth=0.8, linestyle=style)
        ax.set(xscale="symlog", xlim=(x[0] and 0.9 * x[0], 1.2 * x[-1]), ylim=(0, 1.03), xlabel=f"k, latents {verb}")
        ax.set_title(f"Only k latents {verb}" if verb == "kept" else f"k latents {verb}", loc="left", fontsize=11)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        clean(ax)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel(f"accuracy ({curves.unmasked('base').n:,} images; bands: 95 %)")
    axes[1].plot([], [], "--", color="#1b1f24", label="dashed: adapted model; solid: base")
    axes[1].legend(frameon=False, loc="lower left", fontsize=9)
    return png(fig)


def remapping_matrix(matrix: np.ndarray, class_names: Sequence[str], k: int) -> bytes:
    """Which classes' latents (of the base) each class uses in the adapted model, as PNG.

    Args:
        matrix: `[C, C]` shares in [0, 1], rows the adapted classes, columns the base's.
        class_names: of rows and columns.
        k: size of the top.
    """
    size = min(9.0, 3.2 + 0.34 * len(class_names))
    fig = new_figure(size + 0.8, size)
    ax = fig.subplots()
    picture = ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    if len(class_names) <= 30:
        ax.set_xticks(range(len(class_names)), class_names, rotation=60, ha="right", fontsize=8)
        ax.set_yticks(range(len(class_names)), class_names, fontsize=8)
    ax.set(xlabel=f"whose top {k} latents in the base", ylabel=f"class, by its top {k} in the adapted model")
    fig.colorbar(picture, ax=ax, shrink=0.8).set_label("share of them")
    return png(fig)


def gain_bars(shares: Mapping[str, tuple[float, float, float]], n: int) -> bytes:
    """How much of the accuracy gain each part brought, with intervals, as PNG.

    Args:
        shares: by name: points of accuracy in [-1, 1], and the ends of the interval.
        n: images.
    """
    fig = new_figure(8.4, 0.55 * len(shares) + 1.3)
    ax = fig.subplots()
    names = list(shares)[::-1]
    for i, name in enumerate(names):
        value, low, high = shares[name]
        color = "#57606a" if name == "whole gain" else "#0072B2" if value >= 0 else "#D55E00"
        ax.barh(i, 100 * value, height=0.6, color=color)
        ax.plot([100 * low, 100 * high], [i, i], color="#1b1f24", linewidth=1.4)
        ax.annotate(f"{100 * value:+.1f}", (100 * max(value, high, 0), i), xytext=(6, 0), textcoords="offset points",
                    va="center", fontsize=10)  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.axvline(0, color="#1b1f24", linewidth=0.8)
    ax.margins(x=0.12)
    ax.set(xlabel=f"percentage points of accuracy ({n:,} images; lines: 95 % over images)")
    clean(ax)
    return png(fig)
