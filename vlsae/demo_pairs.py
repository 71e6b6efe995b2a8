"""The demo's cross-modal part: one set of concepts for scenes and their captions, scored against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlsae.activations.modalities import TwoModalities
from vlsae.backbones.base import Backbone
from vlsae.metrics.concept_alignment import retrieval, similarities
from vlsae.metrics.latent_translation import latent_translation
from vlsae.metrics.matching import best_partners, correlations
from vlsae.metrics.paired_activation import activation_consistency
from vlsae.metrics.result import Metric
from vlsae.training.loop import train
from vlsae.world import Scenes
from vlsae.world.clip_data import WORD_INDEX, presence

RECIPE = {"n_latents": 512, "k": 8, "steps": 600, "batch_size": 256, "lr": 3e-3, "decay": 0.5}
PAIRED = {"objectives": "reconstruction,cross_reconstruction"}
OURS = "VL-SAE, pairs used"
ONE_EACH = "one dictionary each, matched"


@dataclass(frozen=True)
class PairsResult:
    """Images and captions in the codes of one dictionary.

    Attributes:
        scored: the scenes that were scored; captions: theirs.
        z_images, z_texts: codes of them by the dictionary whose pairs were used, `[scenes, n_latents]`.
        words: single words that were translated.
        of_image, of_word: the latent that tells a word in images, and the one the word alone activates most, `[words]`.
        correlation: of `of_image` with the word's presence in the scenes.
        scores: by method, by score; metrics: those of the default with the others beside, for `metrics.json`.
    """

    scored: Scenes
    captions: list[str]
    z_images: Tensor
    z_texts: Tensor
    words: list[str]
    of_image: np.ndarray
    of_word: np.ndarray
    correlation: np.ndarray
    scores: dict[str, dict[str, Metric]]
    metrics: dict[str, Metric]


def images_and_captions(
    model: Backbone, drawn: tuple[Scenes, Scenes], embeddings: tuple[Tensor, Tensor], words: list[str], out: Path,
    *, seed: int = 0, progress: bool = True, **recipe,
) -> PairsResult:  # fmt: skip
    """Train VL-SAE and what it is compared with on scenes and their captions, and translate words with each.

    Args:
        model: the embedded one.
        drawn: scenes to train on, and held-out ones; embeddings: of their images, `[scenes, e]` each.
        words: to translate.
        out: folder of the dictionaries.
        seed: of weights and order; progress: show progress bars; recipe: fields of `TrainConfig` to replace.

    Returns:
        `PairsResult` of the held-out scenes.
    """
    captions = [[scene.caption for scene in part] for part in drawn]
    texts, held_out = (model.encode_text(part).cpu() for part in captions)
    columns = [WORD_INDEX[word] for word in words]
    labels = torch.from_numpy(np.stack([presence(scene.labels) for scene in drawn[1]])[:, columns] > 0)
    own = {**RECIPE, "seed": seed, "progress": progress, **recipe}
    rows = embeddings[1].cpu(), held_out, model.encode_text(words).cpu()
    codes = _codes(embeddings[0].cpu(), texts, rows, out, own)
    codes["embeddings themselves"] = rows
    scores = {name: _scores(*z, labels) for name, z in codes.items()}
    z_images, z_texts, z_words = codes[OURS]
    kept = [w for w in range(len(words)) if 0 < labels[:, w].sum() < len(labels)]
    by_image = correlations(z_images, labels[:, kept])
    by_word = correlations(z_words, torch.eye(len(words), dtype=torch.bool)[:, kept])
    return PairsResult(
        drawn[1], captions[1], z_images, z_texts, [words[w] for w in kept], by_image.argmax(0), by_word.argmax(0),
        by_image.max(0), scores, _metrics(scores),
    )  # fmt: skip


def _codes(images: Tensor, texts: Tensor, rows: Sequence[Tensor], out: Path, recipe: dict) -> dict[str, tuple]:
    """Codes of `rows` (held-out images, their captions, words alone) by each method."""
    generator = torch.Generator().manual_seed(recipe["seed"] + 1)
    pairs = TwoModalities(images, texts)
    shuffled = TwoModalities(images, texts[torch.randperm(len(texts), generator=generator)])
    made = {
        OURS: train(pairs, "vl_sae", out=out / "paired", **PAIRED, **recipe),
        "VL-SAE as published": train(pairs, "vl_sae", out=out / "published", **recipe),
        "VL-SAE, pairs shuffled": train(shuffled, "vl_sae", out=out / "shuffled", **PAIRED, **recipe),
        "one dictionary for both": train(pairs, "topk", out=out / "one", **recipe),
    }
    codes = {name: tuple(sae.encode(x) for x in rows) for name, sae in made.items()}
    of_images = train(images, "topk", out=out / "images", **recipe)
    of_texts = train(texts, "topk", out=out / "texts", **{**recipe, "seed": recipe["seed"] + 1})
    partners = best_partners(of_images.encode(images), of_texts.encode(texts))
    codes[ONE_EACH] = of_images.encode(rows[0]), *(of_texts.encode(x)[:, partners] for x in rows[1:])
    return codes


def _scores(z_images: Tensor, z_texts: Tensor, z_words: Tensor, labels: Tensor) -> dict[str, Metric]:
    alone = torch.eye(labels.shape[1], dtype=torch.bool)
    return {
        **latent_translation(z_images, labels, z_words, alone),
        "code_iou": activation_consistency(z_images, z_texts)["code_iou"],
        "image_to_text": retrieval(similarities(z_images, z_texts))["image_to_text"],
    }


def _metrics(scores: dict[str, dict[str, Metric]]) -> dict[str, Metric]:
    beside = {"shuffled": "VL-SAE, pairs shuffled", "one": "one dictionary for both", "each": ONE_EACH}
    made = {}
    for kind, metric in scores[OURS].items():
        others = {short: scores[name][kind].value for short, name in beside.items()}
        if "other concept" in metric.baselines:
            others["chance"] = metric.baselines["other concept"]
        name = f"pairs_{kind}"
        made[name] = Metric(name, metric.value, metric.n, metric.definition, baselines=others)
    return made
