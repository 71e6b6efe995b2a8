"""The tiny CLIP's few-shot task, what the methods need to learn it, and `python -m vlsae.adaptation.tiny`: its MaPLe.

The ten objects that the tiny CLIP saw in one icon font only are shown in the other. Published learning rates are made for
CLIPs with far more blocks and steps; `TINY` has options that work here, in less than two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.tuning import adapt
from vlsae.backbones.base import Backbone
from vlsae.backbones.load import load_model
from vlsae.world import tiny_clip
from vlsae.world.captions import concepts
from vlsae.world.layout import SceneOptions, drawable_names
from vlsae.world.scenes import Scenes, scenes

MAPLE_FOLDER = tiny_clip.FOLDER.with_name("tiny_maple")
TEMPLATES = ("{}",)
STYLE = {"styles": "held_out", "n_objects": (1.0, 0.0, 0.0, 0.0)}
TRAIN, TEST = 7_000_000, 7_000_001  # seeds
_SGD = {"lr": 0.05, "epochs": 20, "batch_size": 16, "warm_up_lr": 0.0}
TINY: dict[str, dict[str, Any]] = {
    "coop": {"n_ctx": 4, "lr": 0.01, "epochs": 50, "warm_up_lr": 0.0},
    "kgcoop": {"lr": 0.2, "epochs": 30, "batch_size": 32, "warm_up_lr": 0.0},
    "cocoop": {"optimizer": "adamw", "lr": 5e-3, "epochs": 10, "batch_size": 16, "warm_up_lr": 0.0},
    "vpt": {"depth": 6, **_SGD},
    "maple": {**_SGD, "lr": 0.2, "epochs": 15},
    "ivlp": _SGD,
    "promptsrc": _SGD,
}


def few_shot_task(n: int, seed: int, style: str = "held_out") -> tuple[Scenes, list[int], list[str]]:
    """`n` scenes of one object of the ten, their labels, and the ten class names.

    Args:
        n: scenes.
        seed: of the scenes.
        style: "held_out" or "seen", the font that the tiny CLIP knows these objects in.

    Example:
        >>> drawn, labels, names = few_shot_task(2, seed=0)
        >>> len(names), [names[label] == scene.objects[0].name for label, scene in zip(labels, drawn)]
        (10, [True, True])
    """
    names = list(drawable_names(SceneOptions(**STYLE)))
    drawn = scenes(n, seed=seed, names=tuple(names), **{**STYLE, "styles": style})
    return drawn, [names.index(scene.objects[0].name) for scene in drawn], names


def accuracy(model: Backbone, task: tuple[Scenes, list[int], list[str]]) -> float:
    """Share of the scenes of a task whose most probable class is theirs."""
    drawn, labels, names = task
    best = torch.cat(
        [model.zero_shot(drawn[i : i + 64], names, TEMPLATES).argmax(1).cpu() for i in range(0, len(drawn), 64)]
    )
    return (best == torch.tensor(labels)).float().mean().item()


def train(base: Backbone, method: str, shots: int = 16, progress: bool = True, **options: Any) -> AdaptedBackbone:
    """An adaptation of the tiny CLIP, by the options of `TINY` and any of your own."""
    drawn, labels, names = few_shot_task(30 * shots, TRAIN)
    options = {**TINY.get(method, {}), **options}
    return adapt(base, drawn, method, labels=labels, class_names=names, shots=shots, templates=TEMPLATES,
                 progress=progress, **options)  # fmt: skip


def scores(base: Backbone, adapted: Backbone, n: int) -> dict[str, dict[str, float]]:
    """Accuracy before and after on `n` unseen scenes a row."""
    held_out, seen = few_shot_task(n, TEST), few_shot_task(n, TEST, "seen")
    words = concepts()["object"]
    everything = scenes(n, seed=TEST, **{**STYLE, "styles": "seen"})
    tasks = {
        "ten objects, held-out style, among the ten words": held_out,
        "ten objects, seen style, among the ten words": seen,
        "all objects, seen style, among all 136 words": (
            everything, [words.index(scene.objects[0].name) for scene in everything], list(words),
        ),
    }  # fmt: skip
    return {name: {"before": accuracy(base, task), "after": accuracy(adapted, task)} for name, task in tasks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlsae.adaptation.tiny", description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="maple", choices=sorted(TINY))
    parser.add_argument("--out", type=Path, required=True, help="folder for the adaptation and its scores.json")
    parser.add_argument("--n", type=int, default=2000, help="scenes a score")
    options = parser.parse_args()
    base = load_model("tiny")
    adapted = train(base, options.method)
    adapted.save(options.out)
    found = scores(base, adapted, options.n)
    (options.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(f"{row['before']:.4f} -> {row['after']:.4f}  {name}")


if __name__ == "__main__":
    main()
