"""The demo's adaptation part: the shipped tiny MaPLe against the tiny CLIP, under one dictionary of both."""

from __future__ import annotations

from pathlib import Path

from vlsae.adaptation.comparison.comparison import Comparison, compare
from vlsae.adaptation.comparison.joint import joint_tokens
from vlsae.adaptation.load import load_adapted
from vlsae.adaptation.tiny import MAPLE_FOLDER, TEMPLATES, few_shot_task
from vlsae.backbones.base import Backbone
from vlsae.splice.model import SpLiCE
from vlsae.training.loop import train

SITE = "vision.-2.resid_post"
MASKS = (1, 3, 10, 30, 100)
RECIPE = {"n_latents": 768, "k": 16, "steps": 400, "batch_size": 2048, "lr": 2e-3, "input_transform": "sqrt_d",
          "decay": 0.4}  # fmt: skip


def maple_in_scenes(
    model: Backbone, splice: SpLiCE, out: Path, *, n_train: int = 600, n: int = 200, seed: int = 0, progress: bool = True,
    **recipe,
) -> Comparison:  # fmt: skip
    """Compare the tiny CLIP with its MaPLe on scenes of a style that CLIP never saw and MaPLe was tuned on.

    Args:
        model: the tiny CLIP.
        splice: decomposes class embeddings.
        out: folder for the dictionary and the tables.
        n_train: scenes whose tokens the dictionary is trained on; n: scenes to compare on.
        seed: of scenes, weights and resamples.
        progress: show progress bars.
        **recipe: fields of `TrainConfig` that replace the demo's.
    """
    adapted = load_adapted(model, MAPLE_FOLDER)
    seen, _, _ = few_shot_task(n_train, seed=seed + 4000)
    tokens = joint_tokens([model, adapted], seen, SITE, progress=progress)
    dictionary = train(tokens, "topk", out=out / "dictionary", seed=seed, progress=progress, **{**RECIPE, **recipe})
    drawn, labels, names = few_shot_task(n, seed=seed + 5000)
    comparison = compare(
        model, adapted, dictionary, drawn, class_names=names, labels=labels, templates=TEMPLATES, masks=MASKS,
        splice=splice, site=SITE, seed=seed, progress=progress,
    )  # fmt: skip
    comparison.save(out)
    return comparison
