"""Pictures of decompositions: the concepts of one image, and of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlsae.report.figures import new_figure, png
from vlsae.splice import Decomposition
from vlsae.splice.audits import ConceptSummary

SHOWN = 12
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#57606a"  # Okabe and Ito's, as in the report


def _bars(ax, texts: Sequence[str], values: np.ndarray, right: Sequence[bool] | None, errors=None) -> None:
    """Horizontal bars, strongest on top, each with its number."""
    places = np.arange(len(texts))
    colors = [BLUE if right is None or r else ORANGE for r in (right or [True] * len(texts))]
    ax.barh(places, values, color=colors, height=0.68)
    if errors is not None:
        ax.errorbar(values, places, xerr=errors, fmt="none", ecolor="#1b1f24", elinewidth=1, capsize=2)
    end = values if errors is None else values + errors[1]
    for place, value, x in zip(places, values, end, strict=True):
        ax.text(x, place, f" {value:.3f}", va="center", fontsize=9, color=GREY)
    marked = [
        f"{t} (not in the scene)" if right is not None and not r else t
        for t, r in zip(texts, right or [1] * len(texts))
    ]
    ax.set_yticks(places, marked, fontsize=10)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * float(np.max(end, initial=1e-3)))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def picture_chart(image: Image.Image | None, found: Decomposition, i: int, truth: set[str] | None = None) -> bytes:
    """The concepts of a sample as bars beside it, as PNG.

    Args:
        image: shown at the left; None for texts.
        found: decomposition; i: number of the sample.
        truth: concepts that are there; others are drawn in orange and marked in words.
    """
    rows = found.top(i, SHOWN)
    fig = new_figure(8.4 if image is not None else 6.4, max(2.6, 0.9 + 0.27 * len(rows)))
    if image is not None:
        left, ax = fig.subplots(1, 2, width_ratios=(1, 1.7))
        left.imshow(
            np.asarray(image.convert("RGB")), interpolation="nearest" if max(image.size) < 128 else "antialiased"
        )
        left.set_axis_off()
    else:
        ax = fig.subplots()
    texts = [text for text, _ in rows]
    right = None if truth is None else [text in truth for text in texts]
    _bars(ax, texts, np.array([w for _, w in rows]), right)
    rest = int(found.l0[i]) - len(rows)
    ax.set_xlabel("weight" + (f"; {rest} weaker concepts are not shown" if rest > 0 else ""), fontsize=9)
    title = f"{found.l0[i]} of {len(found.texts):,} concepts, cosine {found.cosine[i]:.2f}"
    ax.set_title(title, loc="left", fontsize=10)
    return png(fig)


def dataset_chart(summary: ConceptSummary, what: str) -> bytes:
    """The strongest concepts of a data set with their bootstrap intervals, as PNG."""
    rows = summary.top(2 * SHOWN)
    fig = new_figure(7.4, 1.1 + 0.25 * max(3, len(rows)))
    ax = fig.subplots()
    values = np.array([r.mean for r in rows])
    errors = np.array([[r.mean - r.low for r in rows], [r.high - r.mean for r in rows]])
    _bars(ax, [f"{r.text} ({r.prevalence:.0%})" for r in rows], values, None, np.maximum(errors, 0))
    ax.set_xlabel(
        f"mean weight with its {summary.level:.0%} interval; in brackets: share of samples that have it", fontsize=9
    )
    ax.set_title(
        f"{what}: the {len(rows)} strongest of {int((summary.count > 0).sum()):,} concepts", loc="left", fontsize=10
    )
    return png(fig)
