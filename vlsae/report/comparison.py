"""The page that says what adaptation changed: base against adapted model, in words, numbers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from vlsae.adaptation.comparison.comparison import Comparison
from vlsae.heatmaps.maps import latent_grids
from vlsae.heatmaps.render import heatmap_rows
from vlsae.report import comparison_figures as figures
from vlsae.report.page import cell, facts, figure, latent_card, paragraph, section, table, tiles, write_page

N_IMAGES, N_LATENTS, N_WORDS, SIDE = 6, 4, 5, 76
GAINS = {"gain": "whole gain", "latents": "through the latents", "remapping": "through what follows them"}
MIXED = {
    "base": "base",
    "adapted": "adapted",
    "adapted_tokens": "adapted tokens at the site, base's later blocks and head",
    "base_tokens": "base's tokens at the site, adapted later blocks and head",
    "head_only": "base's image embeddings, adapted head",
    "shared_only": "adapted, without latents that only it uses",
    "base_codes": "adapted, every latent as active as in base",
    "base_amplitudes": "adapted, latents of both as active as in base",
}


def write_comparison(comparison: Comparison, path: str | Path, names: Sequence[str] | None = None) -> Path:
    """Write the page of one comparison, as one HTML file.

    Args:
        comparison: from `vlsae.compare`.
        path: of the page.
        names: a word for every latent, or None.
    """
    title = f"What adaptation changed: {comparison.base.spec} against {comparison.adapted.spec}"
    return write_page(
        path, title, f"<h1>{escape(title)}</h1>", paragraph(escape(comparison.summary()), "lead"),
        _tiles(comparison), *comparison_sections(comparison, names), _settings(comparison),
    )  # fmt: skip


def adaptation_sections(comparison: Comparison) -> list[str]:
    """For the end of a longer report: what was found in words and numbers, and all sections."""
    title = f"What adaptation changed: {comparison.adapted.spec}"
    lead = section(title, paragraph(escape(comparison.summary())), _tiles(comparison))
    return [lead, *comparison_sections(comparison)]


def comparison_sections(comparison: Comparison, names: Sequence[str] | None = None) -> list[str]:
    """The sections of the page, for use in a longer report."""
    parts = [_validity(comparison), _gain(comparison), _overlap(comparison)]
    if comparison.vision_changed:
        parts.append(_changes(comparison))
        parts += [] if comparison.site.endswith("pooled") else [_latents(comparison, names)]
    parts += [_curves(comparison)] if comparison.curves is not None else []
    parts += [_remapping(comparison)] if comparison.vision_changed and len(comparison.remapping.classes) <= 60 else []
    parts += [_text(comparison)] if comparison.class_concepts is not None else []
    return parts


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _tiles(comparison: Comparison) -> str:
    k = comparison.settings["k"]
    gain, top = comparison.gain, comparison.overlap("class", k)
    n_changed = len(comparison.changed_latents())
    return tiles(
        [
            (f"{100 * gain['base']:.1f} → {100 * gain['adapted']:.1f}", "accuracy in %, base → adapted",
             f"{len(comparison.labels):,} images, {len(comparison.class_names)} classes"),
            (f"{100 * gain['latents']:+.1f}", "points through latents that differ",
             f"{100 * gain['remapping']:+.1f} points through what comes after them"),
            (f"{top.value:.1%}", f"overlap of the top {k} latents of a class",
             f"random latents {top.baselines['random']:.1%}"),
            (str(n_changed), "latents used more or less",
             f"of {comparison.n_active:,} active ones, at a false discovery rate of 5 %"),
        ]
    )  # fmt: skip


def _validity(comparison: Comparison) -> str:
    found = comparison.validity
    rows = [
        [escape(name), cell(fit.ev_centred), cell(fit.l0, 1), cell(fit.dead), cell(fit.accuracy),
         cell(fit.spliced)]
        for name, fit in (("base", found.base), ("adapted", found.adapted))
    ]  # fmt: skip
    return section(
        "Does the dictionary fit both models?",
        paragraph(escape(found.verdict)),
        table(["model", "explained variance", "active latents a token", "dead share", "accuracy", "accuracy, spliced"], rows),
    )  # fmt: skip


def _gain(comparison: Comparison) -> str:
    metrics = comparison.gain_result.metrics
    shares = {label: (metrics[name].value, *metrics[name].ci) for name, label in GAINS.items()}
    return section(
        "Where the accuracy comes from",
        paragraph(
            "Every image runs through one model up to the dictionary's site and through the other from there on. The share of "
            "the <em>latents</em> is what changes with the first half, averaged over both second halves; "
            "<em>remapping</em> is what changes with the later blocks, texts and head. They add up to the whole gain."
        ),
        figure(figures.gain_bars(shares, len(comparison.labels)), "", "bars of the parts of the accuracy gain", 760),
        table(["model put together", "accuracy", "from", "to"], [
            [escape(label), *(cell(value) for value in (metrics[name].value, *metrics[name].ci))]
            for name, label in MIXED.items() if name in metrics
        ]),
    )  # fmt: skip


def _overlap(comparison: Comparison) -> str:
    note = "" if comparison.vision_changed else (
        "This adaptation changes nothing before the dictionary's site: the latents of every image are identical, and all that "
        "differs is how they are read."
    )  # fmt: skip
    return section(
        "Which latents both use",
        paragraph(note) if note else "",
        figure(figures.overlap_curves(comparison.overlaps), "Share of the top k latents that both models have in common, for "
               "the same images. Classes and data set by the number of tokens on which a latent is active.",
               "overlap of top latents over k", 760),
    )  # fmt: skip


def _changes(comparison: Comparison) -> str:
    found = comparison.dataset_changes
    kinds = found.kinds()
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in ("gained", "amplified", "weakened", "lost"))
    picture = figures.change_scatter(found.before, found.after, kinds, "tokens an image on which the latent is active",
                                     f"{len(found):,} latents that are active in either model")  # fmt: skip
    return section(
        "Latents used more, or less",
        paragraph(
            f"Over all images: {counts}. Each was tested on the paired differences of the same images, with false "
            "discoveries held at 5 %."
        ),
        figure(picture, "", "activation of latents in base and adapted model", 620),
    )


def _latents(comparison: Comparison, names: Sequence[str] | None) -> str:
    parts = []
    for title, latents in comparison.examples(N_LATENTS).items():
        if latents:
            parts += [f"<h3>{escape(title)}</h3>", f'<div class="cards">{_cards(comparison, latents, names)}</div>']
    return section(
        "The latents themselves",
        paragraph("Images, and below them where the latent is active: in the base, then in the adapted model; one scale."),
        *parts,
    )  # fmt: skip


def _cards(comparison: Comparison, latents: Sequence[int], names: Sequence[str] | None) -> str:
    before, after = (a.dataset / len(comparison.labels) for a in comparison.aggregates)
    cards = []
    for latent in latents:
        members = comparison.reference_images(latent, N_IMAGES)
        images = [comparison.images[i].image for i in members]
        rows = []
        for model in (comparison.base, comparison.adapted):
            grids = latent_grids(model, comparison.dictionary, images, [latent], comparison.site)[:, 0].numpy()
            rows.append([model.geometry.to_image(grid, image.size) for grid, image in zip(grids, images, strict=True)])
        title = f"#{latent}" + (f" · {names[latent]}" if names else "")
        note = f"tokens an image: base {before[latent]:.2f}, adapted {after[latent]:.2f}"
        picture = heatmap_rows(images, rows, side=SIDE)
        cards.append(latent_card(title, "", note, picture, f"{title}: images, base and adapted heatmaps"))
    return "".join(cards)


def _curves(comparison: Comparison) -> str:
    return section(
        "How few latents are enough, and how many are needed",
        figure(
            figures.masking_plot(comparison.curves, comparison.dictionary.n_latents),
            "Accuracy while only the k latents that rank first are kept (left) or while they are removed (right), each image "
            "under the mask of its own class; what the dictionary does not explain is kept. Ranked on the base model.",
            "accuracy over the number of latents kept or removed", 920,
        ),
    )  # fmt: skip


def _remapping(comparison: Comparison) -> str:
    matrix = comparison.remapping
    own = float(np.nanmean(matrix.kept))
    return section(
        "Whose latents each class uses now",
        paragraph(
            f"On average {_percent(own)} of a class's top {matrix.k} latents in the adapted model were among its own top "
            f"{matrix.k} in the base."
        ),
        figure(
            figures.remapping_matrix(matrix.matrix, [comparison.class_names[c] for c in matrix.classes], matrix.k),
            "",
            "class by class",
            620,
        ),
    )


def _text(comparison: Comparison) -> str:
    def words(concepts: Sequence[tuple[str, float]]) -> str:
        return escape(", ".join(f"{word} {weight:.2f}" for word, weight in concepts[:N_WORDS]))

    rows = [
        [f"{escape(c.name)}<small>before: {words(c.before)}<br>after: {words(c.after)}</small>", cell(c.cosine)]
        for c in comparison.class_concepts
    ]
    return section(
        "What the class texts mean now",
        paragraph(
            "Each class embedding in words of the vocabulary (SpLiCE), before and after, and the cosine between both."
        ),
        table(["class", "cosine"], rows),
    )


def _settings(comparison: Comparison) -> str:
    return section("Settings", facts({name: escape(str(value)) for name, value in comparison.settings.items()}))
