"""Names where there is something to name, silence where there is not."""

import numpy as np
import pytest
import torch

from vlsae.backbones.base import Backbone
from vlsae.concepts.naming import name_latents
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
