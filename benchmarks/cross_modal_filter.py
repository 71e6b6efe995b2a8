"""Do latents shared by images and texts tell captions that belong from shuffled ones? SAE-V's scores beside CLIPScore.

`python benchmarks/cross_modal_filter.py`: the tiny CLIP's tokens of both towers in the shared space, one TopK dictionary on
both, and for every score the AUROC of matched against shuffled captions of scenes it has not seen.
"""

import argparse
import random
import time

import numpy as np
import torch

from vlsae import load_model, train
from vlsae.concepts import SampleTokens, cross_modal_weights, keep_best, score_patches, score_samples
from vlsae.metrics.localisation import auroc
from vlsae.world import scenes

ROWS = (("cosine", "cooccurring"), ("cooccurring_l0", "cooccurring"), ("cosine", "union"), ("cosine", "tokens"),
        ("l0", "cooccurring"))  # fmt: skip


@torch.no_grad()
def image_tokens(model, pictures, batch: int = 128):
    """Patches through the final norm and the projection: hidden states `[N * patches, e]`."""
    patches = [i for i, role in enumerate(model.token_roles) if role == "patch"]
    parts = [
        model.readout(model.tokens(pictures[i : i + batch], "vision.-1.resid_post")[:, patches])
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts).flatten(0, 1)


@torch.no_grad()
def text_tokens(model, captions, kind: str):
    """Words, or the pooled end mark, through the text tower's final norm and projection; and the caption of each."""
    ids = model.tokenize(captions)
    end = ids.argmax(1, keepdim=True)  # the end mark has the highest id
    place = torch.arange(ids.shape[1])[None]
    wanted = {"words": (place > 0) & (place < end), "pooled": place == end}[kind]  # place 0 is the start mark
    projected = model.model.ln_final(model.tokens(captions, "text.-1.resid_post")) @ model.model.text_projection
    return projected[wanted], wanted.nonzero()[:, 0]


def both(model, pictures, captions, kind: str):
    """Hidden states of pairs, their modalities and samples."""
    images, (texts, owner) = image_tokens(model, pictures), text_tokens(model, captions, kind)
    per_image = len(images) // len(pictures)
    modality = torch.cat([torch.zeros(len(images)), torch.ones(len(texts))]).long()
    return torch.cat([images, texts]), modality, torch.cat([torch.arange(len(pictures)).repeat_interleave(per_image), owner])


def in_one_scale(hidden, modality, means, norms):
    """Both modalities centred at 0, with tokens of equal mean length."""
    return (hidden - means[modality]) / norms[modality, None] * hidden.shape[1] ** 0.5
