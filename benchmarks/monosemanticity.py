"""Monosemanticity of latents over families, layers and widths, beside the raw neurons, on the tiny CLIP.

`python benchmarks/monosemanticity.py`: a dictionary each on patches of scenes, an image's activation of a latent is the mean
over its patches, and images are alike by the words that are true of them: the judge is the truth, not the model explained.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

from vlsae import load_model, train
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.metrics.monosemanticity import monosemanticity
from vlsae.metrics.reconstruction import reconstruction
from vlsae.world import concepts, scenes
from vlsae.world.clip_data import WORD_INDEX, presence

KINDS = ("object", "color", "background", "texture")
LAYERS = ("vision.1.resid_post", "vision.-2.resid_post", "vision.-1.resid_post")
FAMILIES = {
    "topk": {"k": 8},
    "batch_topk": {"k": 8},
    "nested_dictionary": {"k": 8},
    "relu": {"target_l0": 8.0},
}


def true_words(drawn) -> torch.Tensor:
    """Unit vectors of the words true of each scene, less their mean: words that are nearly always true make nothing alike."""
    columns = [WORD_INDEX[word] for kind in KINDS for word in concepts()[kind]]
    present = torch.from_numpy(np.stack([presence(scene.labels) for scene in drawn])[:, columns]).float()
    return F.normalize(present - present.mean(0), dim=1)


def score(dictionary, patches: torch.Tensor, judge: torch.Tensor, sides: tuple[int, ...] = (1,)):
    """The mean score with its interval, over latents, and over both signs of neurons."""
    z = torch.cat([dictionary.encode(part).mean(1) for part in patches.split(50)])
    z = torch.cat([(side * z).clamp_min(0.0) for side in sides], 1)
    return monosemanticity(z, judge, floor=0.0, bootstrap=20).metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("train", 1000), ("test", 400), ("steps", 300)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--expansions", type=int, nargs="+", default=[1, 4])
    options, start, model = parser.parse_args(), time.perf_counter(), load_model("tiny")
    seen, unseen = scenes(options.train, seed=1), scenes(options.test, seed=2)
    judge = true_words(unseen)
    print(f"{options.test} unseen scenes; mean over latents [95 % interval over scenes]")
    for layer in LAYERS:
        x, patches = (model.tokens(part, layer)[:, 1:].float() for part in (seen, unseen))
        flat, d = x.flatten(0, 1), x.shape[-1]
        row(layer, "neurons", d, score(ProjectionDictionary.neurons(flat, d), patches, judge, (1, -1)), None)
        for family, own in FAMILIES.items():
            for expansion in options.expansions:
                sae = train(flat, family, n_latents=expansion * d, steps=options.steps, batch_size=1024, lr=2e-3,
                            input_transform="sqrt_d", decay=0.4, progress=False, **own)  # fmt: skip
                row(
                    layer, family, sae.n_latents, score(sae, patches, judge), reconstruction(sae, patches.flatten(0, 1))
                )
    print(f"{time.perf_counter() - start:.0f} s")


def row(layer: str, name: str, width: int, found, fit) -> None:
    low, high = found.ci
    beside = f"EV {fit['ev_centred'].value:.3f}, L0 {fit['l0'].value:.1f}" if fit else ""
    print(
        f"  {layer:22s} {name:18s} {width:5d} latents: {found.value:.3f} [{low:.3f}, {high:.3f}], n = {found.n}, without a "
        f"score {found.baselines['undefined']:.2f}, all pairs {found.baselines['all_pairs']:.3f}  {beside}",
        flush=True,
    )


if __name__ == "__main__":
    main()
