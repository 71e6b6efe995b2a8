"""The section of the demo's report about SpLiCE."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vlsae.report.page import cell, figure, paragraph, section, table
from vlsae.report.splice import picture_chart

if TYPE_CHECKING:
    from vlsae.demo import DemoResult
    from vlsae.demo_words import WordsResult

N_SCENES, N_LATENTS = 4, 10


def words_section(result: DemoResult) -> str:
    """Scenes in words, how true the words are, and latents in words."""
    words = result.words
    return section(
        "Scenes in words (SpLiCE)",
        paragraph(
            f"Nothing is trained here: the embedding of a whole image is written as a sparse non-negative mixture of "
            f"{len(words.found.texts)} words, the closest there is at its penalty (duality gap at most "
            f"{words.found.codes.gap.max():.0e}). Orange: words that are not true of the scene. These are the first "
            f"{N_SCENES} of the scored scenes."
        ),
        *(_scene(words, i) for i in range(N_SCENES)),
        paragraph(
            f"How true the words are, on {len(words.scored):,} held-out scenes of two to four objects: objects among the top "
            "8 words, and the share of those words that are true of the scene (object, group, colour, size, ground, texture)."
        ),
        _scores(words),
        _latents(result),
    )


def _scene(words: WordsResult, i: int) -> str:
    chart = picture_chart(words.scored[i].image, words.found, i, words.true[i])
    said = ", ".join(text for text, _ in words.found.top(i, 8))
    return figure(chart, escape(words.scored[i].caption), f"bars of concept weights: {said}")


def _scores(words: WordsResult) -> str:
    rows = [
        [escape(name), cell(found["recall"].value), cell(found["precision"].value)]
        for name, found in words.scores.items()
    ]
    return table(["words by", "objects recalled", "words true"], rows)


def _latents(result: DemoResult) -> str:
    """The latents that find an object best, read as mixtures of words."""
    sae, atoms = result.localisation["sae"], result.words.atoms
    best = sorted(zip(sae.auroc, sae.columns, strict=True), reverse=True)
    chosen = list(dict.fromkeys(column for _, column in best))[:: max(1, len(best) // N_LATENTS)][:N_LATENTS]
    rows = [
        [f"#{latent}", escape(str(result.names[latent])), escape(" + ".join(f"{w:.2f} {t}" for t, w in atoms.top(latent, 4))),
         f"{atoms.explained[latent]:.0%}"]
        for latent in chosen
    ]  # fmt: skip
    text = paragraph(
        "The same for directions of latents: each atom of the sparse autoencoder, read out into the text space, as a mixture "
        f"of words. What the words leave open is much: the median over all {len(atoms.explained):,} latents is "
        f"{100 * float(sorted(atoms.explained)[len(atoms.explained) // 2]):.0f} % explained."
    )
    return text + table(["latent", "name", "mixture of words", "explained"], rows)
