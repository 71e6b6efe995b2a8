"""Universal dictionaries of two models, and of images and captions, beside pairs that do not belong together.

`python benchmarks/universal.py`: patches of scenes through `tiny` and `tiny16`, whose grids of 8 x 8 and 4 x 4 are brought to
one; then embeddings of scenes and of their captions; then the tiny CLIP and its MaPLe.
Trained on some scenes, scored on others.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vlsae import extract, load_adapted, load_model, train
from vlsae.activations import common_grid
from vlsae.adaptation.comparison.joint import joint_tokens
from vlsae.adaptation.tiny import MAPLE_FOLDER, few_shot_task
from vlsae.metrics.concept_consistency import concept_consistency
from vlsae.metrics.cross_reconstruction import cross_reconstruction
from vlsae.metrics.universality import concept_energy, energy_cofiring, universality
from vlsae.training import train_universal
from vlsae.world import scenes

MODELS = ("tiny", "tiny16")
RECIPES = {
    "topk, all": {"arch": "topk", "update": "all", "input_transform": "centre_sqrt_d", "lr": 2e-3},
    "topk, sampled": {"arch": "topk", "update": "sampled", "input_transform": "centre_sqrt_d", "lr": 2e-3},
    "preset usae, sampled": {"preset": "usae", "update": "sampled", "lr": 2e-3},
}


def patches(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Patch tokens `[n, 16, d]` of the last block but one, by model, on a grid of 4 x 4."""
    with TemporaryDirectory() as folder:
        stores = {
            name: extract(
                load_model(name), scenes(n, seed=seed), out=Path(folder) / name, tokens="patches", progress=False
            )
            for name in MODELS
        }
        return {name: store.images(0, n) for name, store in common_grid(stores).items()}


def embeddings(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Embeddings `[n, 1, d]` of scenes and of their captions, by the tiny CLIP."""
    model, drawn = load_model("tiny"), list(scenes(n, seed=seed))
    return {
        "image": model.encode_image(drawn)[:, None],
        "text": model.encode_text([scene.caption for scene in drawn])[:, None],
    }


def adapted(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Patch tokens `[n, 64, d]` of the tiny CLIP and of its MaPLe, on the scenes that MaPLe was tuned for."""
    base, drawn = load_model("tiny"), few_shot_task(n, seed)[0]
    models = {"base": base, "adapted": load_adapted(base, MAPLE_FOLDER)}
    return {
        name: joint_tokens([model], drawn, progress=False).unflatten(0, (n, -1))[:, 1:]
        for name, model in models.items()
    }


def report(name: str, seen: dict, unseen: dict, options: dict, alone: dict | None = None) -> None:
    """Train on pairs and on scenes shuffled for the second model (places kept), and score both on true pairs."""
    second = list(seen)[1]
    order = torch.randperm(len(seen[second]), generator=torch.Generator().manual_seed(0))
    flat = {m: x.flatten(0, 1) for m, x in unseen.items()}
    for pairs, x in (("true pairs", seen), ("shuffled", {**seen, second: seen[second][order]})):
        start = time.perf_counter()
        universal = train_universal({m: v.flatten(0, 1) for m, v in x.items()}, progress=False, **options)
        r2, z = cross_reconstruction(universal, flat), universal.encode(flat)
        use = universality(z)
        alive = (use.fires > 0).all(0)
        best = use.cofires.topk(min(100, int(alive.sum()))).indices
        chance = use.fires.flip(0) / len(flat[second])  # of two models: how often the other fires anyway
        print(f"{name}; {pairs}: {time.perf_counter() - start:.0f} s")
        print("  R2 (row encodes, column is rebuilt): " + "  ".join(f"{v:.3f}" for v in r2.flatten().tolist()))
        print(
            f"  {int(alive.sum())} of {universal.n_latents} latents fire in both; FE above .9: "
            f"{(use.entropy > 0.9).sum()}; median CFP of the {len(best)} most co-firing: "
            + ", ".join(f"{m} {use.cofiring[i, best].median():.2f} (chance {chance[i, best].median():.2f})"
                        for i, m in enumerate(x))
        )  # fmt: skip
        for i, (m, part) in enumerate(universal.items()):
            energy = concept_energy(z[m], part.atoms)
            line = f"  {m}: r of energy and co-firing {energy_cofiring(energy, use.cofires):.2f}"
            if alone:
                found = concept_consistency(part.atoms[use.fires[i] > 0], alone[m])
                line += f"; consistency {found.value:.2f} (Gaussian {found.baselines['gaussian']:.2f})"
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("train", 2000), ("test", 500), ("steps", 1000), ("latents", 384), ("k", 8), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shared = {"n_latents": args.latents, "k": args.k, "steps": args.steps, "batch_size": 1024, "decay": 0.4}
    seen, unseen = patches(args.train, 1), patches(args.test, 2)
    own = {"input_transform": "centre_sqrt_d", "lr": 2e-3, "seed": 1}  # another start than the universal parts'
    alone = {m: train(x.flatten(0, 1), "topk", progress=False, **own, **shared).atoms for m, x in seen.items()}
    for name, recipe in RECIPES.items():
        report(f"{' x '.join(MODELS)}, {name}", seen, unseen, shared | recipe, alone)
    seen, unseen = embeddings(args.train, 1), embeddings(args.test, 2)
    report("image x text, topk, all", seen, unseen, shared | RECIPES["topk, all"] | {"n_latents": 128})
    seen, unseen = adapted(args.train, 21), adapted(args.test, 22)
    report("base x adapted, topk, all", seen, unseen, shared | RECIPES["topk, all"])


if __name__ == "__main__":
    main()
