"""A forest of latents as nested lists that open and close, with reference images; it needs no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from PIL import Image

from vlsae.concepts.hierarchy import Forest
from vlsae.concepts.naming import LatentName
from vlsae.concepts.statistics import LatentStatistics
from vlsae.heatmaps.render import side_by_side, thumbnail
from vlsae.report.page import image_tag

N_IMAGES, SIDE = 4, 44


def concept_tree(
    forest: Forest,
    statistics: LatentStatistics,
    open_image: Callable[[int], Image.Image],
    names: Sequence[LatentName] | None = None,
    *,
    n_trees: int = 10,
    n_children: int = 8,
) -> str:
    """The largest trees of a forest; each latent with its top images, how often it is active, and P(parent | latent).

    Args:
        forest: over the latents of `statistics`.
        statistics: whose top images are shown.
        open_image: gives image `i`.
        names: of the latents.
        n_trees: how many trees, the largest first; latents that stand alone are left out.
        n_children: of each latent, the most frequent first; the others are counted.

    Returns:
        HTML; a line that says so where no latent has a parent.

    Raises:
        ValueError: for statistics or names of another number of latents.

    Example:
        >>> found = LatentStatistics(n_latents=3, n_classes=0, n_top=2)
        >>> concept_tree(Forest.of_parents([-1, -1, -1]), found, lambda i: Image.new("RGB", (8, 8)))
        '<p>No latent has a parent.</p>'
    """
    m = len(forest.parent)
    if len(statistics.top_images) != m or (names is not None and len(names) != m):
        raise ValueError(
            f"A forest of {m} latents, statistics of {len(statistics.top_images)} and "
            f"{m if names is None else len(names)} names; give one dictionary's."
        )
    trees = forest.roots[forest.size[forest.roots] > 1]
    if not len(trees):
        return "<p>No latent has a parent.</p>"
    chosen = trees[np.argsort(-forest.size[trees], kind="stable")][:n_trees]

    def node(latent: int, opened: bool) -> str:
        line = _line(forest, statistics, open_image, names, latent)
        children = forest.children(latent)
        if not len(children):
            return f'<div class="leaf">{line}</div>'
        children = children[np.argsort(-forest.density[children], kind="stable")]
        inside = "".join(node(int(child), False) for child in children[:n_children])
        more = (
            f'<div class="leaf soft">and {len(children) - n_children} more</div>' if len(children) > n_children else ""
        )
        return f"<details{' open' if opened else ''}><summary>{line}</summary>{inside}{more}</details>"

    return f'<div class="tree">{"".join(node(int(root), i < 2) for i, root in enumerate(chosen))}</div>'


def _line(forest, statistics, open_image, names, latent: int) -> str:
    title = f"#{latent}" + (f" · {names[latent]}" if names else "")
    members = [int(i) for i in statistics.top_images[latent] if i >= 0][:N_IMAGES]
    strip = side_by_side([thumbnail(open_image(i), SIDE) for i in members], gap=2) if members else None
    picture = image_tag(strip, f"top images of {title}") if strip else ""
    facts = f"active on {forest.density[latent]:.1%}"
    if forest.parent[latent] >= 0:
        facts += f"; parent active on {forest.strength[latent]:.0%} of that"
    below = forest.size[latent] - 1
    facts += f"; {below} below" if below else ""
    return f'{picture}<span class="node"><b>{escape(title)}</b><small>{facts}</small></span>'
