"""Words for latents, from two sides, and no word where neither is sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.backbones.base import Backbone
from vlsae.dictionaries.base import Dictionary

THRESHOLD = 3.0
MIN_COSINE, MIN_RATIO = 0.42, 2.0  # of `match_words`: a choice, to be set for each model and vocabulary
BLOCK = 4096  # latents at a time: scores of all words for all latents would be the largest tensor of a report


@dataclass(frozen=True)
class LatentName:
    """The name of a latent, with what speaks for it.

    Attributes:
        word: the name, or None where no word stands out.
        score: how far the word stands out, in standard deviations over the vocabulary.
        source: "atom" (its direction, read out in the text space) or "images" (its top images); the surer one.
        atom_word, atom_score: best word of the direction.
        image_word, image_score: best word of the top images.
    """

    word: str | None
    score: float
    source: str
    atom_word: str
    atom_score: float
    image_word: str
    image_score: float

    def __str__(self) -> str:
        return self.word if self.word is not None else "no name"


def _stand_out(similarity: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Best word of every row, and its distance from the row's mean in standard deviations of the row."""
    z = (similarity - similarity.mean(1, keepdim=True)) / similarity.std(1, keepdim=True).clamp_min(1e-12)
    best = z.max(1)
    return best.indices.numpy(), best.values.numpy()


def _stand_out_in_blocks(similarity: Callable[[slice], Tensor], n: int) -> tuple[np.ndarray, np.ndarray]:
    """`_stand_out` of `similarity(rows)` for all `n` latents, some thousands of rows at a time."""
    found = [_stand_out(similarity(slice(i, i + BLOCK))) for i in range(0, n, BLOCK)]
    best, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return best, score


def atom_word_similarity(model: Backbone, atoms: Tensor, words: Tensor, mean: Tensor) -> Tensor:
    """Cosine of the effect on the read-out of atoms `[N, d]` with each word, `[N, words]`."""
    centred = F.normalize(words - words.mean(0), dim=1)
    return F.normalize(model.readout_directions(atoms, mean), dim=1) @ centred.T


@torch.no_grad()
def image_word_similarity(embeddings: Tensor, words: Tensor, top: np.ndarray, weights: np.ndarray) -> Tensor:
    """Cosine of the weighted mean of the top images' centred embeddings with each word, `[n_latents, words]`.

    Args:
        embeddings: unit image embeddings `[images, e]`.
        words: unit text embeddings `[words, e]`.
        top: image numbers `[n_latents, N]`, -1 pads.
        weights: their activations, `[n_latents, N]`.
    """
    embeddings = embeddings.float().cpu()
    centred = embeddings - embeddings.mean(0)
    rows = np.where(top >= 0, top, 0)
    w = torch.from_numpy(np.where(top >= 0, weights, 0.0)).float()
    pooled = torch.einsum("nt,nte->ne", w, centred[torch.from_numpy(rows)])
    return F.normalize(pooled, dim=1) @ F.normalize(words - words.mean(0), dim=1).T


@dataclass(frozen=True)
class WordMatch:
    """The word nearest to a direction of the joint space.

    Attributes:
        word: the name, or None where the match is weak or ambiguous.
        nearest, second: the two nearest words; cosine: of the nearest.
        ratio: cosine of the nearest over that of the second; infinite where that is not positive.
    """

    word: str | None
    nearest: str
    cosine: float
    second: str
    ratio: float


def match_words(
    directions: Tensor,
    words: Tensor,
    vocabulary: Sequence[str],
    *,
    offset: Tensor | None = None,
    min_cosine: float = MIN_COSINE,
    min_ratio: float = MIN_RATIO,
) -> list[WordMatch]:
    """Name directions of a joint space by their nearest word, where it is near and the second is much farther.

    `cos_iw = cos(d_i - offset, w - mean w)`; the name is accepted where `cos_i1 >= min_cosine` and
    `cos_i1 / cos_i2 >= min_ratio` (MSAE, arXiv 2502.20578). For dictionaries of pooled embeddings, whose atoms
    are in the space of words; `name_latents` serves tokens inside a model.

    Args:
        directions: `[n, e]`, atoms of a dictionary of centred embeddings (`concept_directions`).
        words: text embeddings `[V, e]`, two or more.
        vocabulary: the V words.
        offset: `[e]`, taken off the directions: the mean of what they were read from where they are no differences from
            it, such as image embeddings with the gap between modalities.
        min_cosine, min_ratio: what a name needs.

    Returns:
        One `WordMatch` a direction.

    Raises:
        ValueError: for shapes that do not fit or fewer than two words.

    Example:
        >>> match_words(torch.tensor([[2.0, -1.0]]), torch.eye(2), ["cat", "dog"])[0].word
        'cat'
    """
    if len(words) != len(vocabulary) or len(words) < 2 or words.shape[1:] != directions.shape[1:]:
        raise ValueError(
            f"Directions are {list(directions.shape)}, word embeddings {list(words.shape)} for {len(vocabulary)} words; "
            "expected [n, e] and [V, e] for V words, at least 2."
        )
    words = words.detach().float().cpu()
    words = F.normalize(words - words.mean(0), dim=1)
    directions = directions.detach().float().cpu() - (0.0 if offset is None else offset.detach().float().cpu())
    matches = []
    for rows in F.normalize(directions, dim=1).split(BLOCK):
        best = (rows @ words.T).topk(2, dim=1)
        for (cosine, other), (i, j) in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            ratio = cosine / other if other > 0 else float("inf")
            word = vocabulary[i] if cosine >= min_cosine and ratio >= min_ratio else None
            matches.append(WordMatch(word, vocabulary[i], cosine, vocabulary[j], ratio))
    return matches


def name_latents(
    model: Backbone,
    dictionary: Dictionary,
    vocabulary: Sequence[str],
    *,
    mean: Tensor,
    image_embeddings: Tensor | None = None,
    top_images: np.ndarray | None = None,
    top_values: np.ndarray | None = None,
    templates: Sequence[str] = ("{}",),
    threshold: float = THRESHOLD,
) -> list[LatentName]:
    """Name every latent by the word that stands out most, or honestly by none.

    Two witnesses: the atom's direction read out into the text space, and the top images' embeddings. Each gives every
    word a cosine; a word's score is its z-score among all words for that latent. The surer witness names the latent,
    if its score reaches `threshold`.

    Args:
        model: with a text tower.
        dictionary: trained on its vision tokens.
        vocabulary: candidate words, at least 3.
        mean: mean activation `[d]` at the dictionary's site, around which atoms are read out.
        image_embeddings: unit embeddings `[images, e]`; the image witness is silent without.
        top_images, top_values: from `LatentStatistics`.
        templates: prompts with one `{}`.
        threshold: smallest z-score of a name. Among V random words the largest is about sqrt(2 ln V); it
            can never pass sqrt(V - 1), so that a list of fewer than some 20 words hardly names anything.

    Returns:
        One `LatentName` a latent.

    Raises:
        ValueError: for fewer than 3 words, or a model without a text tower.
    """
    if len(vocabulary) < 3:
        raise ValueError(f"{len(vocabulary)} words cannot be told apart by how far one stands out; give at least 3.")
    words = model.classifier(vocabulary, templates).float().cpu()
    n = dictionary.n_latents
    atom_best, atom_score = _stand_out_in_blocks(
        lambda rows: atom_word_similarity(model, dictionary.atoms[rows], words, mean), n
    )
    if image_embeddings is not None and top_images is not None:
        top, values = np.asarray(top_images), np.asarray(top_values)
        image_best, image_score = _stand_out_in_blocks(
            lambda rows: image_word_similarity(image_embeddings, words, top[rows], values[rows]), n
        )
        image_score = np.where((np.asarray(top_images) >= 0).any(1), image_score, -np.inf)
    else:
        image_best, image_score = np.zeros_like(atom_best), np.full_like(atom_score, -np.inf)
    names = []
    for a, a_score, i, i_score in zip(atom_best, atom_score, image_best, image_score, strict=True):
        source = "atom" if a_score >= i_score else "images"
        score = float(max(a_score, i_score))
        word = vocabulary[a if source == "atom" else i] if score >= threshold else None
        names.append(LatentName(word, score, source, vocabulary[a], float(a_score), vocabulary[i], float(i_score)))
    return names
