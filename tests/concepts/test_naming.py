"""Names where there is something to name, silence where there is not."""

import numpy as np
import pytest
import torch

from vlsae.backbones.base import Backbone
from vlsae.concepts.naming import match_words, name_latents
from vlsae.dictionaries.relu import ReLUDictionary

D, V = 64, 40
WORDS = [f"word {i}" for i in range(V)]


class Analytic(Backbone):
    """A model whose text space is its token space: word i is the i-th axis."""

    model = torch.nn.Linear(1, 1)

    def classifier(self, words, templates):
        return torch.eye(D)[: len(words)]

    def readout(self, tokens):
        return tokens


def _dictionary(atoms):
    sae = ReLUDictionary(D, len(atoms))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(atoms, dim=1))
    return sae


def test_atoms_along_words_get_exactly_those_words():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.eye(D)[:V][[7, 3, 31]] + 0.03 * torch.randn(3, D, generator=generator)
    names = name_latents(Analytic(), _dictionary(atoms), WORDS, mean=torch.randn(D, generator=generator))
    assert [n.word for n in names] == ["word 7", "word 3", "word 31"]
    assert all(n.source == "atom" and n.score > 5 for n in names)  # one of 40: (1 - 1/40) / std = sqrt(39) = 6.2


def test_random_directions_mostly_get_no_name():
    """The largest of 40 normal scores passes 3 with probability 1 - (1 - .00135)^40 = 5 %."""
    atoms = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    names = name_latents(Analytic(), _dictionary(atoms), WORDS, mean=torch.ones(D))
    assert sum(n.word is None for n in names) > 170
    assert str(next(n for n in names if n.word is None)) == "no name"


def test_top_images_name_what_the_direction_does_not():
    generator = torch.Generator().manual_seed(2)
    shown = np.arange(60) % V
    embeddings = torch.nn.functional.normalize(
        torch.eye(D)[shown] + 0.02 * torch.randn(60, D, generator=generator), dim=1
    )
    atoms = torch.zeros(2, D)
    atoms[:, 50] = 1.0  # an axis that is no word's
    top = np.array([[5, 45, -1], [-1, -1, -1]])
    names = name_latents(
        Analytic(), _dictionary(atoms), WORDS, mean=torch.ones(D), image_embeddings=embeddings,
        top_images=top, top_values=np.array([[1.0, 0.9, 0.0], [0.0, 0.0, 0.0]]),
    )  # fmt: skip
    assert (names[0].word, names[0].source) == ("word 5", "images")
    assert names[1].word is None


def test_too_few_words():
    with pytest.raises(ValueError, match="give at least 3"):
        name_latents(Analytic(), _dictionary(torch.eye(D)[:1]), WORDS[:2], mean=torch.ones(D))


def test_words_plus_a_gap_recover_themselves():
    """Card 28: atoms at word embeddings, moved by the gap between modalities, get their own words once it is taken off.

    Unmoved words in 64 dimensions have cosines of standard deviation 1/8: a ratio of 2 needs a second below one half.
    """
    generator = torch.Generator().manual_seed(3)
    words = torch.nn.functional.normalize(torch.randn(V, D, generator=generator) + 0.5, dim=1)
    gap = 3 * torch.randn(D, generator=generator)
    atoms = words + gap
    found = match_words(atoms, words, WORDS, offset=gap + words.mean(0))
    assert [match.word for match in found] == WORDS
    assert all(match.cosine > 0.999 and match.ratio > 2 for match in found)
    assert (
        sum(match.nearest == word for match, word in zip(match_words(atoms, words, WORDS), WORDS, strict=True)) < V / 2
    )


def test_weak_and_ambiguous_matches_get_no_word():
    """Orthonormal words, so that centred cosines are known: `1` to itself and `-1 / (V - 1)` to the others, nearly."""
    words = torch.eye(D)[:V]
    both, weak = words[3] + 0.9 * words[8], words[5] + 4 * torch.eye(D)[50]
    between, faint, clear = match_words(torch.stack([both, weak, 7 * words[5]]), words, WORDS)
    assert between.word is None and (between.nearest, between.second) == (WORDS[3], WORDS[8])
    assert between.ratio == pytest.approx(1 / 0.9, abs=0.02) and between.cosine > 0.7
    assert faint.word is None and faint.nearest == WORDS[5] and faint.ratio > 2
    assert faint.cosine == pytest.approx(17**-0.5, abs=0.01)
    assert clear.word == WORDS[5] and clear.ratio == float("inf")
    named = match_words(torch.stack([both, weak]), words, WORDS, min_cosine=0.2, min_ratio=1.05)
    assert [match.word for match in named] == [WORDS[3], WORDS[5]]
    with pytest.raises(ValueError, match=r"word embeddings \[40, 64\] for 39 words"):
        match_words(words, words, WORDS[:-1])
