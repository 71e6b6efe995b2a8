"""`vlsae evaluate`: families of dictionaries at equal sparsity on the embedded model, against the truth of its scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlsae.activations.extraction import extract
from vlsae.activations.reader import ActivationStore
from vlsae.atomic import replacing
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.demo import MANY, SINGLE, SITE, patch_owners
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.baselines import fit_baselines
from vlsae.metrics.localisation import localise
from vlsae.metrics.matching import stability
from vlsae.metrics.reconstruction import reconstruction
from vlsae.metrics.zero_shot import spliced_zero_shot
from vlsae.training.loop import initial, train
from vlsae.world import Scenes, concepts, scenes

RECIPE = {"n_latents": 768, "steps": 500, "batch_size": 2048, "lr": 2e-3, "decay": 0.4, "input_transform": "sqrt_d",
          "dead_after_tokens": 200_000}  # fmt: skip
STEERED = {
    "relu": {"l1": 0.5},
    "tied": {"l1": 0.5},
    "gated": {"l1": 0.5},
    "jumprelu": {"l0": 20.0, "start": 1.5, "bandwidth": 0.5},
}
OWN = {  # what a family needs beside the common recipe
    "switch": {"experts": 4},
    "archetypal": {"candidates": 1024},
    "spade": {"lr": 5e-3, "clip_gradient": 1.0},
    "group_codebook": {"lr": 1e-2},
}
FAMILIES = ("topk", "batch_topk", "abs_topk", "relu", "tied", "gated", "jumprelu", "switch", "nested_dictionary",
            "nested_sparsity", "archetypal", "matching_pursuit", "spade", "group_codebook")  # fmt: skip
PARTS = 64  # of NMF, whose codes are found by optimisation
HEADS = 4  # groups of the codebook
FIT_TOKENS = 20_000


@dataclass(frozen=True)
class Score:
    """One dictionary's scores on held-out scenes.

    Attributes:
        family: its name; trained: False for baselines; wanted: the L0 it was made for; n_latents: atoms.
        l0, ev, dead: measured mean number of active latents, centred explained variance, share that never fires.
        accuracy: zero-shot accuracy with its reconstruction spliced in.
        localised, auroc: share of objects with a latent of AUROC at least .95, and the median AUROC.
        stability, stability_start: matched cosine with a run of another seed, after and before training.
    """

    family: str
    trained: bool
    wanted: int
    n_latents: int
    l0: float
    ev: float
    dead: float
    accuracy: float
    localised: float
    auroc: float
    stability: float | None = None
    stability_start: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All scores, with what they are compared with.

    Attributes:
        scores: one a dictionary; k: the L0 of the table; original, zeroed: accuracy of the untouched model, and
            without its patches; n_images: scenes of the accuracy; n_tokens: tokens of EV and L0; recipe: of all runs.
    """

    scores: list[Score]
    k: int
    original: float
    zeroed: float
    n_images: int
    n_tokens: int
    recipe: dict[str, Any]


def options_of(family: str, k: int) -> dict[str, Any]:
    """The recipe of a family for a mean of `k` active latents a token."""
    common = {**RECIPE, **OWN.get(family, {})}
    if family in STEERED:
        return {**common, **STEERED[family], "target_l0": float(k)}
    if family == "nested_sparsity":
        return {**common, "ks": [k, 4 * k, common["n_latents"]], "cut": k}
    if family == "group_codebook":
        return {**common, "groups": HEADS, "k": max(1, k // HEADS)}
    if family == "spade":  # its L0 follows from the weight of the locality; wider apart, fewer are active
        return {**common, "locality": 3.0 / k}
    return {**common, "k": k}


class _Bench:
    """The held-out scenes and everything that is measured on them."""

    def __init__(self, model: Backbone, test: Scenes, store: ActivationStore, single: Scenes):
        self.model, self.store, self.single = model, store, single
        self.x = torch.cat([x for _, x in store.batches(512)])
        self.owner = patch_owners(test, model)
        self.words = concepts()["object"]
        self.labels = [self.words.index(s.objects[0].name) for s in single]
        self.zero_shot = partial(spliced_zero_shot, model, images=single, labels=self.labels, site=SITE,
                                 class_names=self.words, templates=("{}",))  # fmt: skip

    def score(self, name: str, dictionary: Dictionary, k: int, trained: bool, **more: float) -> Score:
        found = {key: metric.value for key, metric in reconstruction(dictionary, self.store).items()}
        accuracy = self.zero_shot(dictionary, modes=("spliced",))["spliced"].value
        where = localise(dictionary.encode_sparse, self.x, self.owner, len(self.words), dictionary.signed)
        return Score(name, trained, k, dictionary.n_latents, found["l0"], found["ev_centred"], found["dead"], accuracy,
                     where.share_above(), where.median, **more)  # fmt: skip


def evaluate(
    out: str | Path = "runs/evaluate", *, families: Sequence[str] = FAMILIES, k: int = 12,
    frontier: Sequence[int] = (6, 24), seed: int = 0, n_train: int = 2000, n_test: int = 600, progress: bool = True,
    **recipe: Any,
) -> Evaluation:  # fmt: skip
    """Train families at equal L0 on the embedded tiny CLIP and score them; writes `evaluation.json` and `report.html`.

    Each family is trained at every sparsity, and at `k` with a second seed for its stability. Baselines (PCA, ICA, NMF,
    k-means, random rotation, neurons) are fitted on the same tokens.

    Args:
        out: folder of the run; finished dictionaries found there are not trained again.
        families: of `vlsae.dictionaries.DICTIONARIES`.
        k: active latents a token of the table.
        frontier: further numbers of active latents.
        seed: of scenes, weights and order.
        n_train: scenes to train on; n_test: held-out scenes, and as many of one object for the accuracy.
        progress: show progress bars.
        **recipe: fields of `TrainConfig` that replace those of all runs.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: for a family that does not exist or is not trained.
    """
    out, model = Path(out), load_model("tiny")
    draws = {
        "train": scenes(n_train, seed=seed + 1000, n_objects=MANY, styles="seen"),
        "test": scenes(n_test, seed=seed + 2000, n_objects=MANY, styles="seen"),
    }
    stores = {
        name: extract(model, drawn, SITE, out / "activations" / name, batch_size=64, seed=seed, progress=progress)
        for name, drawn in draws.items()
    }
    bench = _Bench(
        model, draws["test"], stores["test"], scenes(n_test, seed=seed + 3000, n_objects=SINGLE, styles="seen")
    )
    jobs = [(family, level) for family in families for level in sorted({k, *frontier})]
    scores = []
    for family, level in tqdm(jobs, desc="families", disable=not progress):
        options = {**options_of(family, level), **recipe}
        folder = out / "dictionaries" / f"{family}-{level}"
        dictionary = train(stores["train"], family, out=folder, seed=seed, progress=False, **options)
        more = {}
        if level == k:
            other = {**options, "seed": seed + 1}
            second = train(
                stores["train"], family, out=folder.with_name(f"{folder.name}-seed"), progress=False, **other
            )
            starts = [initial(stores["train"], family, **{**options, "seed": s}).atoms for s in (seed, seed + 1)]
            more = {
                "stability": stability(dictionary.atoms, second.atoms, dictionary.signed).mean,
                "stability_start": stability(*starts, dictionary.signed).mean,
            }
        scores.append(bench.score(family, dictionary, level, True, **more))
    scores += _baselines(bench, stores["train"], sorted({k, *frontier}), seed, progress)
    whole = {mode: metric.value for mode, metric in bench.zero_shot(dictionary, modes=("original", "zeroed")).items()}
    result = Evaluation(scores, k, whole["original"], whole["zeroed"], n_test, bench.x[..., 0].numel(),
                        {**RECIPE, **recipe})  # fmt: skip
    with replacing(out / "evaluation.json") as partial_file:
        partial_file.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    from vlsae.report.evaluate import write_evaluation

    write_evaluation(result, out / "report.html")
    return result


def _baselines(bench: _Bench, store: ActivationStore, levels: list[int], seed: int, progress: bool) -> list[Score]:
    """Scores of what needs no training."""
    x = torch.cat([x for _, x in store.batches(512)]).flatten(0, 1)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:FIT_TOKENS]]
    scores = []
    for level in tqdm(levels, desc="baselines", disable=not progress):
        made = fit_baselines(x, level, RECIPE["n_latents"], seed, parts=PARTS)
        scores += [
            bench.score(name, dictionary, level, False)
            for name, dictionary in made.items()
            if level == levels[0] or name != "kmeans"  # one centroid a token at every level
        ]
    return scores
