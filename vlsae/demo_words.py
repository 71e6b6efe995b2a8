"""The demo's SpLiCE part: held-out scenes and latents in words, scored against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vlsae.backbones.base import Backbone
from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.result import Metric
from vlsae.metrics.words import words_against_truth
from vlsae.splice import AtomExplanations, Decomposition, SpLiCE, explain_atoms, solve
from vlsae.splice.embedding import unit
from vlsae.world import Scenes

PENALTIES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
RIDGE = 0.1


@dataclass(frozen=True)
class WordsResult:
    """Scenes and latents in words.

    Attributes:
        scored: the scenes that were scored; found: their decomposition with the default penalty.
        true: words true of each of them.
        scores: for every way of finding words, recall of objects and precision of all words.
        atoms: the dictionary's latents in words.
        metrics: the default's scores with the others as baselines, for `metrics.json`.
    """

    scored: Scenes
    found: Decomposition
    true: list[set[str]]
    scores: dict[str, dict[str, Metric]]
    atoms: AtomExplanations
    metrics: dict[str, Metric]


def probe_scores(z_train: np.ndarray, present: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A supervised reference: ridge regression of every word's presence on the embeddings, `[N, K]`.

    In standard deviations of the presence: without that, words that are often true crowd out the objects.
    """
    mean = present.mean(0)
    gram = z_train.T @ z_train + RIDGE * np.eye(z_train.shape[1])
    return z @ np.linalg.solve(gram, z_train.T @ (present - mean)) / np.sqrt(mean * (1 - mean) + 1e-3)


def words_in_scenes(
    model: Backbone, dictionary: Dictionary, drawn: Scenes, embeddings: Tensor, mean: Tensor
) -> WordsResult:
    """Decompose one half of the scenes; the other half trains the probe that stands beside.

    Args:
        model: the embedded one; dictionary: trained on its patch tokens, with `mean` its mean token.
        drawn: held-out scenes; embeddings: theirs, `[scenes, e]`.
    """
    splice = SpLiCE(model, "tiny", progress=False)
    texts, half = splice.space.vocabulary.texts, len(drawn) // 2
    known = set(texts)
    true = [{w for words in drawn[i].labels.values() for w in words} & known for i in range(len(drawn))]
    objects = [set(drawn[i].labels["object"]) for i in range(half, len(drawn))]
    x = embeddings.cpu().numpy()
    found = splice.decompose(x[half:])
    z = unit(x - splice.mean("image", x))
    present = np.array([[text in words for text in texts] for words in true[:half]], dtype=np.float64)
    views = {f"SpLiCE, l1 = {l1:g}": solve(z[half:], splice.space.prepared, l1).weights for l1 in PENALTIES}
    views["cosine with the centred words"] = z[half:] @ splice.space.atoms.T
    views["cosine, not centred"] = x[half:] @ splice.space.embeddings.T
    views["linear probe (supervised)"] = probe_scores(z[:half], present, z[half:])
    scores = {name: words_against_truth(view, texts, objects, true[half:]) for name, view in views.items()}
    return WordsResult(
        drawn[half:], found, true[half:], scores, explain_atoms(dictionary, model, splice.space, mean=mean),
        _metrics(scores, f"SpLiCE, l1 = {splice.l1:g}"),
    )  # fmt: skip


def _metrics(scores: dict[str, dict[str, Metric]], default: str) -> dict[str, Metric]:
    others = {"cosine": "cosine with the centred words", "probe": "linear probe (supervised)"}
    made = {}
    for kind, metric in scores[default].items():
        beside = {short: scores[name][kind].value for short, name in others.items()}
        name = f"words_{kind}"
        made[name] = Metric(name, metric.value, metric.n, metric.definition, baselines=beside)
    return made
