"""The report of `vlsae demo`: scores against the truth, baselines beside each, failures shown."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlsae import __version__
from vlsae.report.cards import latent_cards
from vlsae.report.comparison import adaptation_sections
from vlsae.report.demo_hierarchy import hierarchy_section
from vlsae.report.demo_pairs import pairs_section
from vlsae.report.demo_words import words_section
from vlsae.report.figures import METHODS, latent_scatter, localisation_curves
from vlsae.report.page import cell, facts, figure, paragraph, section, table, tiles, write_page
from vlsae.world import concepts

if TYPE_CHECKING:
    from vlsae.demo import DemoResult

N_BEST, N_WORST = 16, 4
LABELS = {
    "objects_localised": "Objects localised (AUROC ≥ .95)",
    "object_auroc_median": "Median AUROC, against other objects",
    "object_auroc_all_patches": "Median AUROC, against all patches",
    "object_average_precision": "Median average precision",
    "object_pointing_game": "Pointing game",
    "object_iou": "Median IoU",
    "names_right": "Names right",
    "ev_centred": "Explained variance, centred",
    "cosine": "Cosine of token and reconstruction",
    "l0": "Active latents a token (L0)",
    "dead": "Dead latents",
    "words_recall": "SpLiCE: objects among the top 8 words",
    "words_precision": "SpLiCE: top 8 words that are true",
    "tree_ancestor_precision": "Concept tree: pairs (ancestor, descendant) that are true",
    "tree_ancestor_recall": "Concept tree: true pairs found",
    "tree_ancestor_f1": "Concept tree: F1 of pairs",
    "tree_tree_distance": "Concept tree: rank correlation of distances",
    "pairs_same_latent": "VL-SAE: words whose latent is the same in images and alone",
    "pairs_translated": "VL-SAE: words translated",
    "pairs_code_iou": "VL-SAE: overlap of an image's and its caption's codes",
    "pairs_image_to_text": "VL-SAE: captions found by codes",
    "maple_gain_base": "MaPLe: accuracy before",
    "maple_gain_adapted": "MaPLe: accuracy after",
    "maple_gain_latents": "MaPLe: gain through latents",
    "maple_gain_remapping": "MaPLe: gain through what follows them",
    "maple_top_10_overlap_class": "MaPLe: overlap of a class's top 10 latents",
    "maple_rbo_class": "MaPLe: rank-biased overlap of a class's latents",
    "zero_shot_original": "Zero-shot accuracy, untouched",
    "zero_shot_spliced": "Zero-shot accuracy, reconstruction spliced in",
    "zero_shot_error_kept": "Zero-shot accuracy, reconstruction + error",
    "zero_shot_zeroed": "Zero-shot accuracy, patches zeroed",
}
COLUMNS = ("neurons", "pca", "random", "shuffled", "cosine", "probe", "chance")


def write_demo_report(result: DemoResult) -> Path:
    """Write `report.html` into the run's folder; returns its path."""
    return write_page(
        result.out / "report.html",
        "vlsae demo: what a Patch-SAE finds in a tiny CLIP",
        "<h1>What a Patch-SAE finds in a tiny CLIP</h1>",
        paragraph(
            "A sparse dictionary was trained on the patch tokens of a small CLIP, without labels. Because every image "
            "is drawn from a recipe, what each latent responds to can be checked against the truth.", "lead"
        ),
        _headline(result),
        _best(result),
        _localisation(result),
        _statistics(result),
        words_section(result),
        hierarchy_section(result.hierarchy, result.test),
        pairs_section(result.pairs),
        *adaptation_sections(result.adaptation),
        _all_scores(result),
        _worst(result),
        _cards(result),
    )  # fmt: skip


def _headline(result: DemoResult) -> str:
    m = result.metrics
    localised, spliced, names, ev = (
        m[k] for k in ("objects_localised", "zero_shot_spliced", "names_right", "ev_centred")
    )
    beside = ", ".join(f"{METHODS[b][0]} {v:.0%}" for b, v in localised.baselines.items())
    return tiles(
        [
            (f"{localised.value:.0%}", f"of {localised.n} objects have a latent that finds them (AUROC ≥ .95)", beside),
            (
                f"{names.value:.0%}",
                f"of the {names.n} latents that find an object carry its word",
                f"shuffled names: {names.baselines['shuffled']:.0%}",
            ),
            (
                f"{spliced.value:.1%}",
                "zero-shot accuracy with the reconstruction spliced in",
                f"untouched model: {m['zero_shot_original'].value:.1%}, patches zeroed: "
                f"{m['zero_shot_zeroed'].value:.1%}",
            ),
            (
                f"{ev.value:.0%}",
                f"of the variance explained with {m['l0'].value:.0f} latents a token",
                f"PCA with as many components: {ev.baselines['pca']:.0%}",
            ),
        ]
    )


def _by_auroc(result: DemoResult) -> list[tuple[float, int, int]]:
    sae = result.localisation["sae"]
    return sorted(zip(sae.auroc, sae.concepts, sae.columns, strict=True), reverse=True)


def _gallery(result: DemoResult, chosen: list[tuple[float, int, int]], verb: str = "finds") -> str:
    words = concepts()["object"]
    badges = [f"{verb} “{words[c]}”, AUROC {area:.3f}" for area, c, _ in chosen]
    return latent_cards(
        result.model, result.dictionary, result.statistics, [latent for _, _, latent in chosen],
        lambda i: result.test[i].image, result.names, badges, result.test_store,
    )  # fmt: skip


def _best(result: DemoResult) -> str:
    seen: set[int] = set()
    distinct = [row for row in _by_auroc(result) if not (row[2] in seen or seen.add(row[2]))]
    at = np.linspace(0, min(len(distinct) - 1, 3 * N_BEST), N_BEST).astype(int)
    spread = [distinct[i] for i in dict.fromkeys(at)]
    return section(
        "Latents that find objects",
        paragraph(
            "Above, the held-out scenes that activate a latent most; below, where it is active. Names were given from the "
            "latent's direction and its top images alone; the truth appears only in the corner of each card. "
            "σ is how far a word stands out from the other words."
        ),
        _gallery(result, spread),
    )


def _localisation(result: DemoResult) -> str:
    return section(
        "Against simpler ways of looking",
        paragraph("For every object, the best column of each method, on scenes that were not used to choose it."),
        figure(
            localisation_curves(result.localisation),
            "AUROC against <em>other objects'</em> patches: telling an object from background alone would score .5 here. "
            "Neurons, PCA and random directions may be turned round; there are as many random directions as latents.",
            "sorted AUROC curves of Patch-SAE, neurons, PCA and random directions",
        ),
    )


def _statistics(result: DemoResult) -> str:
    words = concepts()["object"]
    top = {latent: words[c] for _, c, latent in _by_auroc(result)[:20]}
    return section(
        "Four statistics of every latent",
        paragraph(
            f"On {result.labelled.n_images:,} held-out scenes of one object each; its class is the label. Latents that find "
            "one object are dark and strongly active; latents of grounds and colours, to the right, fire for every class."
        ),
        figure(
            latent_scatter(result.labelled, top),
            "Some of the latents with the highest AUROC carry their object's word.",
            "scatter of activated frequency and mean activation, coloured by label entropy, sized by label std",
        ),
    )


def _all_scores(result: DemoResult) -> str:
    rows, best = [], []
    for name, metric in result.metrics.items():
        values = [metric.value, *(metric.baselines.get(b) for b in COLUMNS)]
        rows.append(
            [f"{LABELS[name]}<small>{metric.definition}</small>", f"{metric.n:,}", *(cell(value) for value in values)]
        )
        known = [(v if metric.higher_is_better else -v, -i) for i, v in enumerate(values) if v is not None]
        best.append(2 - max(known)[1] if metric.higher_is_better is not None and len(known) > 1 else None)
    head = ["score", "n", "ours", "neurons", "PCA", "random", "shuffled", "cosine", "probe", "chance"]
    return section("All scores, with their baselines", table(head, rows, best))


def _worst(result: DemoResult) -> str:
    worst = _by_auroc(result)[-N_WORST:][::-1]
    return section(
        "Where it fails",
        paragraph("The objects that no latent finds well, and the best latent there is for each."),
        _gallery(result, worst, "best for"),
    )


def _cards(result: DemoResult) -> str:
    recipe = result.dictionary.metadata["recipe"]
    model = result.model
    vision = f"{model.geometry.height} px, {model.geometry.rows} x {model.geometry.columns} patches"
    stages = ", ".join(f"{stage} {value:.0f} s" for stage, value in result.seconds.items())
    return section(
        "Model, data, and how to repeat this",
        facts(
            {
                "Model": f"<code>{model.spec}</code>, an open_clip CLIP trained on such scenes; {vision}; weights "
                f"<code>{model.weight_hash}</code>",
                "Site": f"<code>{result.dictionary.metadata['site']}</code>, patch tokens, width {result.dictionary.d}",
                "Scenes": f"1 to 4 of {len(concepts()['object'])} objects from two icon fonts, 10 colours, 11 grounds, 4 "
                f"textures; {result.dictionary.metadata['n_tokens_seen']:,} tokens seen in training, "
                f"{result.test_store.n_images:,} held-out scenes with several objects, "
                f"{result.labelled.n_images:,} with one",
                "Dictionary": f"TopK, {result.dictionary.n_latents:,} latents, k = {recipe['k']}, {recipe['steps']:,} steps "
                f"of {recipe['batch_size']:,} tokens, learning rate {recipe['lr']:g}, seed {recipe['seed']}",
                "Repeat": f"<code>vlsae demo --seed {recipe['seed']}</code> (vlsae {__version__}, torch "
                f"{torch.__version__}, Python {platform.python_version()})",
                "Time": stages,
            }
        ),
    )
