"""Measure a tiny CLIP on held-out scenes: `python -m vlsae.world.evaluate_clip [--folder FOLDER]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from vlsae.world import tiny_clip
from vlsae.world.captions import concepts
from vlsae.world.clip_data import SLICES, WORD_INDEX, WORDS, patch_coverage, patch_owners
from vlsae.world.clip_losses import text_embeddings, vision_tokens
from vlsae.world.scenes import Scene, scenes

SEED = 20_240_000  # training draws its scenes from 48-bit seeds of its own
SINGLE = {"n_objects": (1.0, 0.0, 0.0, 0.0)}


class Evaluator:
    """Scores of one model; every method draws its own held-out scenes."""

    def __init__(self, folder: Path):
        import open_clip

        self.folder = Path(folder)
        self.model = open_clip.create_model(f"local-dir:{folder}").eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.words = self.text(WORDS)
        self.grid = self.model.visual.grid_size[0]

    @torch.no_grad()
    def text(self, texts: list[str]) -> Tensor:
        return text_embeddings(self.model, self.tokenizer(texts))

    @torch.no_grad()
    def vision(self, drawn: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image embeddings, and unit read-outs of the patches after the last two blocks."""
        everything = torch.arange(self.grid**2).expand(len(drawn), -1)
        pixels = torch.from_numpy(np.stack([s.pixels for s in drawn]))
        visual = self.model.visual
        tokens = vision_tokens(visual, pixels, everything)
        penultimate, last = (F.normalize(visual.ln_post(t) @ visual.proj, dim=-1) for t in tokens)
        return last[:, 0], penultimate[:, 1:], last[:, 1:]

    def images(self, drawn: list[Scene]) -> Tensor:
        return torch.cat([self.vision(drawn[i : i + 128])[0] for i in range(0, len(drawn), 128)])

    def single(self, n: int, kind: str = "object", **options) -> float:
        """Zero-shot accuracy on scenes of one object."""
        drawn = list(scenes(n, seed=SEED + 1, **{**SINGLE, **options}))
        part = SLICES[kind]
        best = (self.images(drawn) @ self.words[part].T).argmax(1)
        truth = torch.tensor([WORD_INDEX[s.labels[kind][0]] - part.start for s in drawn])
        return (best == truth).float().mean().item()

    def recall(self, n: int, objects: int) -> float:
        """Share of the objects of an n-object scene among the n best object words."""
        weights = tuple(float(i + 1 == objects) for i in range(4))
        drawn = list(scenes(n, seed=SEED + 2, n_objects=weights, styles="seen"))
        best = (self.images(drawn) @ self.words[SLICES["object"]].T).topk(objects, 1).indices
        names = concepts()["object"]
        hits = [len({names[i] for i in row} & set(s.labels["object"])) for row, s in zip(best, drawn, strict=True)]
        return sum(hits) / (objects * n)

    def retrieval(self, n: int = 1000) -> float:
        """Image-to-caption recall at 1; scenes with equal captions are all right."""
        drawn = list(scenes(n, seed=SEED + 3, styles="seen"))
        captions = [s.caption for s in drawn]
        best = (self.images(drawn) @ self.text(captions).T).argmax(1)
        return sum(captions[b] == c for b, c in zip(best, captions, strict=True)) / n

    def patches(self, n: int) -> dict[str, tuple[float, float]]:
        """Mean and median AUROC of an object's word on its own patches against other objects' patches."""
        drawn = list(scenes(n, seed=SEED + 4, n_objects=(0.0, 1.0, 1.0, 1.0), styles="seen"))
        owner = np.stack([self._owners(s) for s in drawn])
        shown = owner >= 0
        result = {}
        for at, name in ((1, "penultimate"), (2, "last")):
            found = [self.vision(drawn[i : i + 128])[at] for i in range(0, n, 128)]
            scores = (torch.cat(found) @ self.words[SLICES["object"]].T).numpy()[shown]
            truth = owner[shown]
            areas = [roc_auc_score(truth == c, scores[:, c]) for c in np.unique(truth)]
            result[name] = (float(np.mean(areas)), float(np.median(areas)))
        return result

    def _owners(self, scene: Scene) -> np.ndarray:
        names = np.array([WORD_INDEX[o.name] - SLICES["object"].start for o in scene.objects])
        return patch_owners(patch_coverage(scene.masks, self.grid), names)


def evaluate(folder: Path, n: int = 2000) -> dict[str, float]:
    """All scores that the model card reports; `n` scenes each, seeds that training never uses."""
    e = Evaluator(folder)
    patches = e.patches(n)
    return {
        "object accuracy, free positions": e.single(n, styles="seen"),
        "object accuracy, positions on an 8-unit grid": e.single(n, styles="seen", align=8),
        "object accuracy, small": e.single(n, styles="seen", sizes=(1.0, 0.0, 0.0)),
        "object accuracy, medium": e.single(n, styles="seen", sizes=(0.0, 1.0, 0.0)),
        "object accuracy, large": e.single(n, styles="seen", sizes=(0.0, 0.0, 1.0)),
        "object accuracy, held-out object-colour combinations": e.single(n, styles="seen", combinations="held_out"),
        "object accuracy, held-out font": e.single(n, styles="held_out"),
        "colour accuracy": e.single(n, "color", styles="seen"),
        "background accuracy": e.single(n, "background", styles="seen"),
        "texture accuracy": e.single(n, "texture", styles="seen"),
        "size accuracy": e.single(n, "size", styles="seen"),
        "object recall among the top 2 words, 2 objects": e.recall(n, 2),
        "object recall among the top 3 words, 3 objects": e.recall(n, 3),
        "object recall among the top 4 words, 4 objects": e.recall(n, 4),
        "patch-to-word AUROC against other objects, penultimate block (mean)": patches["penultimate"][0],
        "patch-to-word AUROC against other objects, penultimate block (median)": patches["penultimate"][1],
        "patch-to-word AUROC against other objects, last block (mean)": patches["last"][0],
        "patch-to-word AUROC against other objects, last block (median)": patches["last"][1],
        "image-to-caption R@1 of 1,000": e.retrieval(1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=tiny_clip.FOLDER)
    parser.add_argument("--n", type=int, default=2000, help="scenes a score")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scores = evaluate(options.folder, options.n)
    if options.json:
        print(json.dumps(scores, indent=2))
    else:
        for name, value in scores.items():
            print(f"{value:7.4f}  {name}")


if __name__ == "__main__":
    main()
