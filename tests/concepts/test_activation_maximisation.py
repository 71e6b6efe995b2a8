"""Activation maximisation where the best input is known."""

import pytest
import torch

from vlsae.concepts.activation_maximisation import maximise_activations
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.universal import UniversalDictionary


def test_linear_models_have_a_closed_form():
    """`w x - penalty ||x||^2` is largest at `w / (2 penalty)`, where x is the model's own pixels."""
    generator = torch.Generator().manual_seed(0)
    pair = UniversalDictionary({"a": TopKDictionary(6, 8, k=1), "b": TopKDictionary(4, 8, k=1, seed=1)})
    eyes = {"a": torch.randn(12, 6, generator=generator), "b": torch.randn(12, 4, generator=generator)}

    def score(name, latent=3):
        return lambda images: pair[name].pre(images.flatten(1) @ eyes[name])[:, latent]

    best = maximise_activations({m: score(m) for m in pair}, torch.zeros(2, 3, 2, 2), penalty=0.5, steps=400)
    for m in pair:
        known = (eyes[m] @ pair[m].W_enc[:, 3]).detach().reshape(3, 2, 2)
        assert torch.allclose(best[m], known.expand(2, 3, 2, 2), atol=1e-3)
        assert pair[m].W_enc.grad is None


def test_scores_without_a_gradient_are_refused():
    with pytest.raises(ValueError, match="score of 'a' has shape .* gradient: False"):
        maximise_activations({"a": lambda x: x.detach().sum(1)}, torch.zeros(2, 3))
