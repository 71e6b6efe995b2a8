"""`vlsae demo`: the whole path on the embedded model and scenes, scored against the truth."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vlsae.activations.extraction import extract
from vlsae.activations.reader import ActivationStore
from vlsae.adaptation.comparison.comparison import Comparison
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.concepts.naming import LatentName, name_latents
from vlsae.concepts.statistics import LatentStatistics, latent_statistics
from vlsae.demo_adaptation import maple_in_scenes
from vlsae.demo_hierarchy import HierarchyResult, concept_tree_of_scenes
from vlsae.demo_pairs import PairsResult, images_and_captions
from vlsae.demo_words import WordsResult, words_in_scenes
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.metrics.localisation import Localisation, localise
from vlsae.metrics.reconstruction import reconstruction
from vlsae.metrics.result import Metric
from vlsae.metrics.zero_shot import spliced_zero_shot
from vlsae.splice.model import SpLiCE
from vlsae.training.loop import train
from vlsae.world import Scenes, concepts, scenes
from vlsae.world.clip_data import COVERED

SITE = "vision.-2.resid_post"
RECIPE = {"n_latents": 1024, "k": 12, "steps": 600, "batch_size": 2048, "lr": 2e-3, "input_transform": "sqrt_d",
          "dead_after_tokens": 300_000, "decay": 0.4}  # fmt: skip
SINGLE = (1.0, 0.0, 0.0, 0.0)
MANY = (0.0, 1.0, 1.0, 1.0)
HEADLINES = ("gain_base", "gain_adapted", "gain_latents", "gain_remapping", "top_10_overlap_class", "rbo_class")


@dataclass
class DemoResult:
    """What the demo found, for the report.

    Attributes:
        out: the run's folder.
        model, dictionary, names: the model, the trained dictionary, and a name for each latent.
        test: held-out scenes with several objects; test_store their activations.
        statistics: of the latents on the held-out scenes, with reference images.
        labelled: of the latents on single-object scenes, with label entropy and spread.
        localisation: per method, how well its best column localises each object.
        words: the held-out scenes and the latents in words, by SpLiCE.
        hierarchy: a forest over the latents of a nested dictionary.
        pairs: the held-out scenes and their captions in the concepts of one dictionary.
        adaptation: the shipped MaPLe against the model.
        metrics: every score by name.
        seconds: time of each stage.
    """

    out: Path
    model: Backbone
    dictionary: Dictionary
    names: list[LatentName]
    test: Scenes
    test_store: ActivationStore
    statistics: LatentStatistics
    labelled: LatentStatistics
    localisation: dict[str, Localisation]
    words: WordsResult
    hierarchy: HierarchyResult
    pairs: PairsResult
    adaptation: Comparison
    metrics: dict[str, Metric]
    seconds: dict[str, float]


def patch_owners(drawn: Scenes, model: Backbone) -> np.ndarray:
    """Number of the object concept on every patch, `[scenes, patches]`; -1 where less than a quarter is covered."""
    number = {name: i for i, name in enumerate(concepts()["object"])}
    rows = []
    for scene in drawn:
        coverage = model.geometry.pool(scene.masks).reshape(len(scene.objects), -1)
        owner = np.array([number[o.name] for o in scene.objects])[coverage.argmax(0)]
        rows.append(np.where(coverage.max(0) > COVERED, owner, -1))
    return np.stack(rows)


def run_demo(out: str | Path = "runs/demo", *, seed: int = 0, n_train: int = 3000, n_test: int = 2000,
             progress: bool = True, **recipe) -> DemoResult:  # fmt: skip
    """Extract, train, name, localise and score on the embedded tiny CLIP; writes `report.html` and `metrics.json`.

    Args:
        out: folder of the run; what is there of the same run is continued.
        seed: of scenes, weights and order.
        n_train: scenes to train on.
        n_test: held-out scenes; half chooses latents, the other half scores them.
        progress: show progress bars.
        **recipe: fields of `TrainConfig` that replace the demo's; of them `steps` for the other dictionaries, too.

    Returns:
        `DemoResult`.
    """
    out, seconds, clock = Path(out), {}, time.time()

    def lap(stage: str) -> None:
        nonlocal clock
        seconds[stage], clock = time.time() - clock, time.time()

    model = load_model("tiny")
    draws = {
        "train": scenes(n_train, seed=seed + 1000, n_objects=MANY, styles="seen"),
        "test": scenes(n_test, seed=seed + 2000, n_objects=MANY, styles="seen"),
        "single": scenes(n_test // 2, seed=seed + 3000, n_objects=SINGLE, styles="seen"),
    }
    stores = {
        name: extract(
            model,
            drawn,
            SITE if name == "single" else [SITE, "vision.pooled"],
            out / "activations" / name,
            batch_size=64,
            seed=seed,
            progress=progress,
        )
        for name, drawn in draws.items()
    }
    lap("extract")
    dictionary = train(stores["train"], "topk", out=out / "dictionary", seed=seed, progress=progress,
                       **{**RECIPE, **recipe})  # fmt: skip
    lap("train")
    labels = np.array([concepts()["object"].index(s.objects[0].name) for s in draws["single"]])
    statistics = latent_statistics(dictionary, stores["test"], n_top=8, progress=progress)
    labelled = latent_statistics(dictionary, stores["single"], labels=labels, n_classes=len(concepts()["object"]),
                                 progress=progress)  # fmt: skip
    statistics.save(out / "statistics")
    labelled.save(out / "statistics_labelled")
    lap("statistics")
    embeddings = stores["test"].embeddings()
    names = _names(model, dictionary, stores["train"], embeddings, statistics)
    lap("names")
    localisation, metrics = _scores(model, dictionary, names, draws, stores, labels, seed)
    lap("scores")
    words = words_in_scenes(model, dictionary, draws["test"], embeddings, stores["train"].mean())
    metrics |= words.metrics
    lap("words")
    hierarchy = concept_tree_of_scenes(
        model, (stores["train"], stores["test"]), draws["test"], _vocabulary(), out / "nested", seed=seed,
        progress=progress, **{**RECIPE, **recipe},
    )  # fmt: skip
    metrics |= hierarchy.metrics
    lap("tree")
    pairs = images_and_captions(model, (draws["train"], draws["test"]), (stores["train"].embeddings(), embeddings),
                                _vocabulary(), out / "pairs", seed=seed, progress=progress,
                                **{name: recipe[name] for name in ("steps",) if name in recipe})  # fmt: skip
    metrics |= pairs.metrics
    lap("pairs")
    adaptation = maple_in_scenes(model, SpLiCE(model, "tiny", progress=False), out / "adaptation",
                                 n_train=min(600, n_train // 2), n=min(200, n_train // 4), seed=seed, progress=progress,
                                 **{name: recipe[name] for name in ("steps",) if name in recipe})  # fmt: skip
    metrics |= {f"maple_{name}": metric for name, metric in adaptation.metrics().items() if name in HEADLINES}
    lap("adaptation")
    result = DemoResult(out, model, dictionary, names, draws["test"], stores["test"], statistics, labelled,
                        localisation, words, hierarchy, pairs, adaptation, metrics, seconds)  # fmt: skip
    text = json.dumps({name: metric.as_dict() for name, metric in metrics.items()}, indent=1)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    from vlsae.report.demo import write_demo_report

    write_demo_report(result)
    lap("report")
    return result


def _vocabulary() -> list[str]:
    kinds = concepts()
    return [w for kind in ("object", "color", "background", "texture", "size") for w in kinds[kind]]


def _names(model, dictionary, store, embeddings, statistics) -> list[LatentName]:
    return name_latents(
        model, dictionary, _vocabulary(), mean=store.mean(), image_embeddings=embeddings,
        top_images=statistics.top_images, top_values=statistics.top_image_values,
    )  # fmt: skip


def _scores(model, dictionary, names, draws, stores, labels, seed) -> tuple[dict[str, Localisation], dict[str, Metric]]:
    x_train = torch.cat([x for _, x in stores["train"].batches(512)]).flatten(0, 1)
    k = dictionary.settings["k"]
    bases = {
        "neurons": ProjectionDictionary.neurons(x_train, k),
        "pca": ProjectionDictionary.pca(x_train, k),
        "random": ProjectionDictionary.rotation(x_train, k, seed),
    }
    localisation = _localise_all(dictionary, bases, stores["test"], patch_owners(draws["test"], model), seed)
    metrics = _localisation_metrics(localisation)
    metrics |= _name_metrics(names, localisation["sae"], seed)
    found = {name: reconstruction(d, stores["test"]) for name, d in {"sae": dictionary, **bases}.items()}
    for key, metric in found["sae"].items():
        metrics[key] = replace(
            metric, baselines={} if key == "dead" else {name: found[name][key].value for name in bases}
        )
    accuracy = spliced_zero_shot(model, dictionary, draws["single"], labels, concepts()["object"], templates=("{}",),
                                 site=SITE, baselines=bases)  # fmt: skip
    for metric in accuracy.values():
        metrics[metric.name] = replace(metric, baselines={**metric.baselines, "chance": 1 / len(concepts()["object"])})
    return localisation, metrics


def _localise_all(dictionary, bases, store, owner, seed) -> dict[str, Localisation]:
    x = torch.cat([x for _, x in store.batches(512)])
    n_concepts = len(concepts()["object"])
    generator = torch.Generator().manual_seed(seed)
    random_directions = torch.nn.functional.normalize(torch.randn(store.d, dictionary.n_latents, generator=generator),
                                                      dim=0)  # fmt: skip
    views = {
        "sae": (dictionary.encode_sparse, False),
        "neurons": (lambda v: v, True),
        "pca": (lambda v: (v - bases["pca"].b_dec) @ bases["pca"].W_enc, True),
        "random": (lambda v: v @ random_directions, True),
    }
    return {name: localise(view, x, owner, n_concepts, signed) for name, (view, signed) in views.items()}


def _localisation_metrics(localisation: dict[str, Localisation]) -> dict[str, Metric]:
    sae = localisation["sae"]
    others = {name: value for name, value in localisation.items() if name != "sae"}
    n = len(sae.concepts)
    rows = {
        "objects_localised": (lambda v: v.share_above(0.95),
                              "share of objects whose best column has AUROC >= .95 on the object's patches against other "
                              "objects' patches; chosen on one half of the held-out scenes, scored on the other"),
        "object_auroc_median": (lambda v: v.median, "median over objects of that AUROC"),
        "object_auroc_all_patches": (lambda v: float(np.median(v.auroc_all)),
                                     "median over objects of the AUROC against all other patches, background included"),
        "object_average_precision": (lambda v: float(np.median(v.average_precision)),
                                     "median over objects of the average precision against other objects' patches"),
        "object_pointing_game": (lambda v: float(np.mean(v.pointing)),
                                 "mean over objects of the share of images whose highest patch lies on the object"),
        "object_iou": (lambda v: float(np.median(v.iou)),
                       "median over objects of the IoU of thresholded patches with the object's patches; threshold "
                       "chosen on the other half"),
    }  # fmt: skip
    return {
        name: Metric(name, fn(sae), n, definition, baselines={b: fn(v) for b, v in others.items()})
        for name, (fn, definition) in rows.items()
    }


def _name_metrics(names: list[LatentName], sae: Localisation, seed: int) -> dict[str, Metric]:
    """Whether the latents that localise an object carry that object's word."""
    words = concepts()["object"]
    pairs = [(c, column) for c, column, area in zip(sae.concepts, sae.columns, sae.auroc, strict=True) if area >= 0.95]
    right = [names[column].word == words[c] for c, column in pairs]
    shuffled = [names[column] for _, column in pairs]
    random.Random(seed).shuffle(shuffled)
    chance = [name.word == words[c] for (c, _), name in zip(pairs, shuffled, strict=True)]
    mean = lambda v: float(np.mean(v)) if v else 0.0  # noqa: E731
    return {
        "names_right": Metric(
            "names_right", mean(right), len(pairs),
            "share of the latents that localise an object (AUROC >= .95) which are named by exactly that object's word",
            baselines={"shuffled": mean(chance)},
        )
    }  # fmt: skip
