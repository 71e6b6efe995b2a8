"""A latent's top images beside its top sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from vlsae.heatmaps.render import side_by_side, thumbnail
from vlsae.report.page import image_tag

N_IMAGES, N_TEXTS, SIDE = 6, 6, 72


def top_rows(z: Tensor, latent: int, n: int) -> list[int]:
    """Rows of `z [N, n_latents]` on which a latent is most active, best first; only rows where it is active."""
    values, rows = z[:, latent].topk(min(n, len(z)))
    return [int(row) for value, row in zip(values, rows, strict=True) if value > 0]


def cross_modal_cards(
    z_images: Tensor,
    z_texts: Tensor,
    latents: Sequence[int | tuple[int, int]],
    open_image: Callable[[int], Image.Image],
    texts: Sequence[str],
    titles: Sequence[str],
    notes: Sequence[str] | None = None,
    marked: Sequence[str] | None = None,
) -> str:
    """One card a latent: the images that activate it most above the sentences that do.

    Args:
        z_images, z_texts: codes of one dictionary, or of two that were matched, `[N, n]` and `[M, n]`.
        latents: numbers of latents; a pair shows the images of its first and the sentences of its second.
        open_image: gives image `i`; texts: the sentences, `M` of them.
        titles, notes: of each card; marked: a word a card that is set in bold where a sentence holds it.

    Returns:
        HTML.

    Raises:
        ValueError: for texts that are not of the coded rows, or numbers of titles, notes or marks that do not fit.

    Example:
        >>> import torch
        >>> picture = Image.new("RGB", (8, 8))
        >>> "a red box" in cross_modal_cards(torch.eye(1), torch.eye(1), [0], lambda i: picture, ["a red box"], ["#0"])
        True
    """
    if len(texts) != len(z_texts):
        raise ValueError(f"{len(z_texts)} codes and {len(texts)} sentences were given; give one a row.")
    blank = [""] * len(latents)
    rows = zip(latents, titles, notes or blank, marked or blank, strict=True)
    cards = []
    for latent, title, note, word in rows:
        of_images, of_texts = (latent, latent) if isinstance(latent, int) else latent
        pictures = [thumbnail(open_image(i), SIDE) for i in top_rows(z_images, of_images, N_IMAGES)]
        strip = image_tag(side_by_side(pictures), f"top images of {title}") if pictures else "<p>no image</p>"
        lines = "".join(f"<li>{_bold(texts[i], word)}</li>" for i in top_rows(z_texts, of_texts, N_TEXTS))
        said = f"<ol>{lines}</ol>" if lines else "<p>no sentence</p>"
        cards.append(
            f'<article class="card"><header><h3>{escape(title)}</h3></header><div class="soft">{escape(note)}</div>'
            f"{strip}{said}</article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _bold(text: str, word: str) -> str:
    """The sentence as HTML, with a word in bold wherever it stands by itself."""
    if not word:
        return escape(text)
    pieces = re.split(rf"(?<!\w)({re.escape(word)})(?!\w)", text)
    return "".join(f"<b>{escape(piece)}</b>" if i % 2 else escape(piece) for i, piece in enumerate(pieces))
