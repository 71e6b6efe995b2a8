"""Do latents shared by images and texts tell captions that belong from shuffled ones? SAE-V's scores beside CLIPScore.

`python benchmarks/cross_modal_filter.py`: tokens of both towers of the tiny CLIP in the shared space, one TopK dictionary on
both, and for every score the AUROC of matched against shuffled captions of scenes that neither it nor the weights have seen.
"""

import argparse
import time

import numpy as np
import torch

from vlsae import load_model, train
from vlsae.activations import TwoModalities
from vlsae.concepts import SampleTokens, cross_modal_weights, keep_best, score_patches, score_samples
from vlsae.metrics.localisation import auroc
from vlsae.world import scenes

SCORES = (("cosine", "cooccurring"), ("cooccurring_l0", "cooccurring"), ("cosine", "union"), ("cosine", "tokens"),
          ("l0", "cooccurring"))  # fmt: skip
TOP_TOKENS = (30, 300)  # the paper's, and one for streams with many more image tokens than text tokens


def image_tokens(model, pictures, batch: int = 128):
    """Patches through the final norm and the projection, `[N * patches, e]`, and the picture of each."""
    patches = [i for i, role in enumerate(model.token_roles) if role == "patch"]
    with torch.no_grad():
        parts = [
            model.readout(model.tokens(pictures[i : i + batch], "vision.-1.resid_post")[:, patches])
            for i in range(0, len(pictures), batch)
        ]
    return torch.cat(parts).flatten(0, 1), torch.arange(len(pictures)).repeat_interleave(len(patches))


def text_tokens(model, captions, kind: str):
    """Words, or the pooled end mark, through the text tower's final norm and projection, and the caption of each."""
    ids = model.tokenize(captions)
    end = ids.argmax(1, keepdim=True)  # the end mark has the highest id
    place = torch.arange(ids.shape[1])[None]
    wanted = {"words": (place > 0) & (place < end), "pooled": place == end}[kind]  # place 0 is the start mark
    with torch.no_grad():
        tokens = model.model.ln_final(model.tokens(captions, "text.-1.resid_post")) @ model.model.text_projection
    return tokens[wanted], wanted.nonzero()[:, 0]


def in_one_scale(modality: torch.Tensor, hidden: torch.Tensor):
    """A map that gives both modalities mean 0 and a mean norm of sqrt(d): what the threshold of 1 is meant for."""
    means = torch.stack([hidden[modality == side].mean(0) for side in (0, 1)])
    norms = torch.stack([(hidden[modality == side] - means[side]).norm(dim=1).mean() for side in (0, 1)])
    return lambda side, x: (x - means[side]) / norms[side, None] * x.shape[1] ** 0.5


def joined(images, texts):
    """Hidden states, modalities and samples of both sides' tokens."""
    modality = torch.arange(2).repeat_interleave(torch.tensor([len(images[0]), len(texts[0])]))
    return torch.cat([images[0], texts[0]]), modality, torch.cat([images[1], texts[1]])


def fit(hidden, modality, options):
    """One dictionary on equally many tokens of both sides, drawn with replacement: there are fewer texts."""
    g = torch.Generator().manual_seed(0)
    sides = [hidden[modality == side] for side in (0, 1)]
    images, texts = (side[torch.randint(len(side), (options.tokens,), generator=g)] for side in sides)
    return train(TwoModalities(images, texts), "topk", n_latents=options.latents, k=options.k, steps=options.steps,
                 batch_size=512, lr=2e-3, b_dec_init="mean", progress=False)  # fmt: skip


def show_scores(tokens, weights, matched) -> None:
    """A row a score: AUROC, and how much of the kept half is matched."""
    for method, over in SCORES:
        scores = score_samples(tokens, weights, method, over)
        kept = matched[keep_best(scores, 0.5)].mean()
        print(
            f"    {method:14s} over {over:12s} AUROC {auroc(scores.numpy(), matched):.3f}   kept half matched {kept:.2f}"
        )


def show_patches(tokens, weights, drawn, model, matched) -> None:
    """Whether the best quarter of the patches is where the objects are, on pictures with their own caption."""
    covered = np.stack([model.geometry.pool(scene.masks.any(0)) for scene in drawn])[matched] >= 0.25
    n = len(covered)
    for method in ("cosine", "l1", "cooccurring_l0"):
        scores = score_patches(tokens, weights, model.patch_grid, method).numpy()[matched]
        area = auroc(scores.ravel(), covered.ravel())
        best = np.argsort(-scores.reshape(n, -1), axis=1, kind="stable")[:, : covered[0].size // 4]
        hit = np.take_along_axis(covered.reshape(n, -1), best, 1)
        recall = (hit.sum(1) / np.minimum(covered.reshape(n, -1).sum(1), best.shape[1]).clip(1)).mean()
        print(f"    patches by {method:14s} AUROC of objects {area:.3f}   recall in the best quarter {recall:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("train", 1200), ("test", 400), ("latents", 512), ("k", 16), ("steps", 300), ("tokens", 30000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options, start, model = parser.parse_args(), time.perf_counter(), load_model("tiny")
    seen, unseen = scenes(options.train, seed=1), scenes(options.test, seed=2)
    captions = [scene.caption for scene in unseen]
    captions[1::2] = captions[3::2] + captions[1:2]  # every second caption moved on: ties then favour nobody
    matched = np.arange(options.test) % 2 == 0
    pictures = [scene.image for scene in unseen]
    clip = torch.einsum("nd,nd->n", model.encode_image(pictures), model.encode_text(captions))
    print(f"{options.test} pairs, half of them shuffled; CLIPScore AUROC {auroc(clip.numpy(), matched):.3f}")
    image_sides = [image_tokens(model, part) for part in ([scene.image for scene in seen], pictures)]
    for kind in ("pooled", "words"):
        text_sides = [text_tokens(model, part, kind) for part in ([scene.caption for scene in seen], captions)]
        (hidden, side, sample), test = (joined(*both) for both in zip(image_sides, text_sides, strict=True))
        scale = in_one_scale(side, hidden)
        dictionary = fit(scale(side, hidden), side, options)
        known = SampleTokens.encode(dictionary, scale(side, hidden), side, sample)
        tokens = SampleTokens.encode(dictionary, scale(test[1], test[0]), *test[1:])
        for top in TOP_TOKENS:
            weights = cross_modal_weights([known], options.latents, top_tokens=top)
            kinds = ", ".join(
                f"{n} {name}" for name, n in zip(*np.unique(weights.kind, return_counts=True), strict=True)
            )
            print(f"  {kind} text tokens, top_tokens={top}: {kinds}")
            show_scores(tokens, weights, matched)
            show_patches(tokens, weights, unseen, model, matched)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
