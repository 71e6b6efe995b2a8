"""The section of the demo's report about images and captions in one set of concepts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from vlsae.report.cross_modal import cross_modal_cards
from vlsae.report.page import cell, paragraph, section, table

if TYPE_CHECKING:
    from vlsae.demo_pairs import PairsResult

N_SAME, N_OTHER = 8, 2
SCORES = {"same_latent": "same latent", "translated": "words translated", "code_iou": "overlap of codes",
          "image_to_text": "caption found"}  # fmt: skip
EMBEDDINGS = "embeddings themselves"


def pairs_section(pairs: PairsResult) -> str:
    """Latents with their images and sentences, those that fail too, and the scores with their baselines."""
    same = pairs.of_image == pairs.of_word
    order = np.argsort(-pairs.correlation, kind="stable")
    right, wrong = [w for w in order if same[w]], [w for w in order if not same[w]]
    chosen = _distinct(pairs, right)
    spread = [chosen[i] for i in dict.fromkeys(np.linspace(0, len(chosen) - 1, N_SAME).astype(int))] if chosen else []
    return section(
        "Images and sentences in one set of concepts (VL-SAE)",
        paragraph(
            f"Another dictionary was trained on embeddings of whole scenes and of their captions together, with a decoder "
            f"for each. Its latents can be read in both. For {same.sum()} of {len(same)} words the latent that tells the "
            "word in images is the very latent that the word alone activates most. Above, its top images; below, its top "
            "sentences."
        ),
        _cards(pairs, spread),
        paragraph(
            "How often that holds on held-out scenes. <em>Same latent</em>: as just said. <em>Words translated</em>: the "
            "word's latent in images is active for that word above all others. <em>Overlap of codes</em>: shared "
            "active latents of an image and its caption, over all of theirs. <em>Caption found</em>: an image's caption is "
            f"nearest to it among {len(pairs.captions):,}, by the codes alone."
        ),
        _table(pairs),
        paragraph(
            "Where it fails: of the words told best in images, some whose own latent is another one. Images of the first "
            "above, sentences of the second below."
        ),
        _cards(pairs, wrong[:N_OTHER]),
    )


def _distinct(pairs: PairsResult, words: list[int]) -> list[int]:
    """One word a latent, the best told first."""
    seen: set[int] = set()
    return [w for w in words if not (pairs.of_image[w] in seen or seen.add(pairs.of_image[w]))]


def _cards(pairs: PairsResult, words: list[int]) -> str:
    latents = [(int(pairs.of_image[w]), int(pairs.of_word[w])) for w in words]
    titles = [
        f"#{image} · {pairs.words[w]}" if image == text else f"#{image} and #{text} · {pairs.words[w]}"
        for w, (image, text) in zip(words, latents, strict=True)
    ]
    notes = [f"correlation with “{pairs.words[w]}” in images {pairs.correlation[w]:.2f}" for w in words]
    return cross_modal_cards(
        pairs.z_images, pairs.z_texts, latents, lambda i: pairs.scored[i].image, pairs.captions, titles, notes,
        [pairs.words[w] for w in words],
    )  # fmt: skip


def _table(pairs: PairsResult) -> str:
    def value(name: str, kind: str) -> float | None:
        # every coordinate of an embedding is active, so that they always overlap
        return None if (name, kind) == (EMBEDDINGS, "code_iou") else pairs.scores[name][kind].value

    rows = [[escape(name), *(cell(value(name, kind)) for kind in SCORES)] for name in pairs.scores]
    first = next(iter(pairs.scores.values()))
    chance = [cell(first[kind].baselines.get("other concept")) for kind in SCORES]
    return table(["method", *SCORES.values()], [*rows, ["chance: another word's latent", *chance]])
