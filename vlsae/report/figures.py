"""The plots of the report."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.isotonic import isotonic_regression

from vlsae.concepts.statistics import LatentStatistics
from vlsae.metrics.localisation import Localisation

# Okabe and Ito's colours: told apart with any colour vision; line styles repeat the difference
METHODS = {
    "sae": ("Patch-SAE latents", "#0072B2", "-"),
    "neurons": ("raw neurons", "#D55E00", "--"),
    "pca": ("PCA", "#009E73", "-."),
    "random": ("random directions", "#7f7f7f", ":"),
}


LABEL_DISTANCE = (0.7, 0.12)  # natural logarithms of frequency and activation


def new_figure(width: float, height: float) -> Figure:
    fig = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def png(fig: Figure) -> bytes:
    buffer = BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def clean(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6eaee", linewidth=0.7)
    ax.set_axisbelow(True)


def spread(wanted, gap: float, low: float, high: float) -> np.ndarray:
    """Heights for labels: at least `gap` apart, in the order of the wanted ones and as near to them as can be.

    Least squares under an order is isotonic regression of what is left when the gaps are taken off.

    Args:
        wanted: `[n]`, any order; low, high: where the first and the last may be at the outermost.

    Example:
        >>> spread([0.5, 0.5, 0.9], gap=0.1, low=0, high=1).round(2).tolist()
        [0.45, 0.55, 0.9]
    """
    wanted = np.asarray(wanted, float)
    if not len(wanted):
        return wanted
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    room = max(low, high - gap * (len(wanted) - 1))
    found = np.empty_like(wanted)
    found[order] = steps + isotonic_regression(wanted[order] - steps, y_min=low, y_max=room)
    return found


def name_lines(ax, ends: dict[str, tuple[float, float]], colours: dict[str, str], size: float = 8.0) -> None:
    """Write the name of every line beside the axes, each joined to the line's last point by a thin leader.

    A line that ends in the left half has its name at that point, where a leader would cross all others.

    Args:
        ax: with its limits and scales set.
        ends: the last point of every line by name, in data coordinates.
        colours: by name, of the text and the leader.
        size: of the letters, in points.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    places = {name: to_axes.transform(end) for name, end in ends.items()}
    far = [name for name, (x, _) in places.items() if x >= 0.5]
    gap = 1.25 * size / (72 * ax.figure.get_figheight() * 0.82)  # the axes take about .82 of the figure's height
    heights = dict(zip(far, spread([places[name][1] for name in far], gap, 0.0, 1.0), strict=True))
    for name, end in ends.items():
        dark = [0.7 * part for part in to_rgb(colours[name])]  # thin letters need more contrast than lines
        style = {"fontsize": size, "color": dark, "va": "center", "annotation_clip": False}
        if name in heights:
            leader = {"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1}
            ax.annotate(name, end, xytext=(1.06, heights[name]), textcoords="axes fraction", arrowprops=leader, **style)
        else:
            ax.annotate(name, end, xytext=(5, 0), textcoords="offset points", **style)


def latent_scatter(statistics: LatentStatistics, marked: dict[int, str] | None = None) -> bytes:
    """Frequency, mean activation, label entropy and label spread of every living latent, as PNG.

    Args:
        statistics: with class sums for entropy and spread; without classes all points are grey.
        marked: latents to label with a word.
    """
    fig = new_figure(8.4, 5.2)
    ax = fig.subplots()
    alive = np.flatnonzero(statistics.alive)
    x, y = statistics.image_density[alive], statistics.mean_activation[alive]
    if statistics.n_classes > 1 and np.isfinite(statistics.label_entropy()).any():
        entropy, spread = statistics.label_entropy()[alive], statistics.label_std()[alive]
        order = np.argsort(-entropy)
        size = 8 + 90 * spread / max(np.nanmax(spread), 1e-12)
        points = ax.scatter(x[order], y[order], c=entropy[order], s=size[order], cmap="cividis", linewidths=0.3,
                            edgecolors="white", vmin=0, vmax=np.log(statistics.n_classes))  # fmt: skip
        bar = fig.colorbar(points, ax=ax, pad=0.01)
        bar.set_label(f"label entropy (nats; 0: one class, {np.log(statistics.n_classes):.1f}: all alike)")
        ax.text(
            0.99, 0.02, "larger dots: larger label std", transform=ax.transAxes, ha="right", fontsize=9, color="#57606a"
        )
    else:
        ax.scatter(x, y, s=14, color="#0072B2", alpha=0.6, linewidths=0)
    placed: list[np.ndarray] = []
    for latent, word in (marked or {}).items():
        at = np.array([statistics.image_density[latent], statistics.mean_activation[latent]])
        if any((np.abs(np.log(at / other)) < LABEL_DISTANCE).all() for other in placed):
            continue  # words on top of each other help nobody
        placed.append(at)
        ax.annotate(word, at, xytext=(5, 5), textcoords="offset points", fontsize=9,
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75})  # fmt: skip
    ax.set(
        xscale="log", yscale="log", xlabel="activated frequency (share of images)", ylabel="mean positive activation"
    )
    ax.set_title(f"{len(alive):,} living latents of {statistics.n_latents:,}; {statistics.n_images:,} images",
                 loc="left", fontsize=11)  # fmt: skip
    clean(ax)
    return png(fig)


def localisation_curves(found: dict[str, Localisation]) -> bytes:
    """AUROC of every object's best column, sorted, one line a method, as PNG."""
    fig = new_figure(8.4, 4.4)
    ax = fig.subplots()
    for key, result in found.items():
        label, color, style = METHODS[key]
        values = np.sort(result.auroc)[::-1]
        share = (np.arange(len(values)) + 0.5) / max(1, len(values))
        text = f"{label}: median {result.median:.3f}, {result.share_above():.0%} ≥ .95"
        ax.plot(share, values, style, color=color, linewidth=2.2, label=text)
    ax.axhline(0.95, color="#1b1f24", linewidth=0.8)
    ax.text(0.004, 0.953, ".95", fontsize=9)
    ax.set(xlim=(0, 1), ylim=(min(0.6, *(min(r.auroc, default=1) for r in found.values())), 1.005),
           xlabel="share of objects, best localised first", ylabel="AUROC against other objects' patches")  # fmt: skip
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    n = len(next(iter(found.values())).concepts)
    ax.set_title(f"{n} objects; column chosen on one half of the scenes, scored on the other", loc="left", fontsize=11)
    ax.legend(frameon=False, loc="lower left")
    clean(ax)
    return png(fig)


def by_layer(distribution) -> np.ndarray:
    """Latents that are active at all, those of early layers first.

    Args:
        distribution: `[n_latents, L]` from `layer_distribution`, rows of NaN for silent latents.

    Returns:
        Their numbers, ordered by the mean layer; equal means keep the order of numbers.

    Example:
        >>> by_layer([[0.0, 1.0], [np.nan, np.nan], [0.5, 0.5]]).tolist()
        [2, 0]
    """
    distribution = np.asarray(distribution, float)
    active = np.flatnonzero(np.isfinite(distribution).all(1))
    mean = distribution[active] @ np.arange(distribution.shape[1])
    return active[np.argsort(mean, kind="stable")]


def layer_heatmap(distribution, layers: Sequence[str] | None = None, *, n_tokens: int | None = None) -> bytes:
    """How every latent's activation is spread over the layers of a multi-layer dictionary, as PNG.

    Args:
        distribution: `P(L = l | J = j)`, `[n_latents, L]` from `vlsae.metrics.layers.layer_distribution`.
        layers: names of the layers, their numbers from 0 where None.
        n_tokens: tokens it was taken over, for the title.

    Raises:
        ValueError: for another number of names, or where all latents are silent.
    """
    distribution = np.asarray(distribution, float)
    n_latents, n_layers = distribution.shape
    names, order = [str(i) for i in range(n_layers)] if layers is None else list(layers), by_layer(distribution)
    if len(names) != n_layers or not len(order):
        raise ValueError(
            f"{len(names)} names of layers and {len(order)} active latents of {n_latents} were given for {n_layers} "
            "layers; give a name a layer, and latents of which at least one is active."
        )
    fig = new_figure(8.4, 1.6 + 0.24 * n_layers)
    ax = fig.subplots()
    picture = ax.imshow(distribution[order].T, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=1,
                        interpolation="nearest" if len(order) < 1000 else "antialiased")  # fmt: skip
    fig.colorbar(picture, ax=ax, pad=0.01, format=PercentFormatter(1.0), label="share of a latent's\nactivation")
    ax.set(xlabel="active latents, ordered by their mean layer", ylabel="layer")
    ax.set_yticks(range(n_layers), names)
    over = "" if n_tokens is None else f"; {n_tokens:,} tokens at {n_layers} layers"
    ax.set_title(f"{len(order):,} active latents of {n_latents:,}{over}", loc="left", fontsize=11)
    return png(fig)
