"""Activation maximisation where the best input is known."""

import pytest
import torch

from vlsae.concepts.activation_maximisation import maximise_activations, maximise_phase, natural_magnitudes
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.universal import UniversalDictionary
from vlsae.world import scenes


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


def _noise(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (8, 5)])
def test_the_best_phase_of_a_linear_model_is_that_of_its_weights(size):
    """`<w, x>` is a sum of `|W_k| r_k cos(phase)` (Parseval), largest where the phases agree, but for fixed signs.

    1e-5 is what FFTs in float32 leave of values of size 1 to 50.
    """
    w, start = _noise(3, *size, seed=1), _noise(2, 3, *size, seed=2)
    r = natural_magnitudes(_noise(9, 3, *size, seed=3) + 1)

    def score(x):
        return (w * x).sum((1, 2, 3))

    best = maximise_phase(score, r, start, steps=400)
    assert torch.allclose(torch.fft.rfft2(best).abs(), r.expand(2, *r.shape), rtol=1e-5, atol=1e-5)
    free = torch.fft.fft2(w).angle().expand(2, -1, -1, -1)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    fixed = (2 * rows % size[0] == 0) & (2 * columns % size[1] == 0)
    assert ((torch.fft.fft2(best).angle() - free)[..., ~fixed].cos() > 1 - 1e-5).all()
    signs = torch.fft.fft2(start).real.sign() * torch.fft.fft2(w).real.sign()
    aligned = torch.where(fixed, signs, 1.0) * torch.fft.fft2(w).abs() * torch.fft.fft2(best).abs()
    assert torch.allclose(score(best), aligned.sum((1, 2, 3)) / (size[0] * size[1]), rtol=1e-5)


def test_phases_of_natural_images_raise_a_latent_of_the_tiny_clip(tiny):
    """The cosine with a text rises from the phases of a noisy scene; magnitudes stay those of scenes."""
    pixels = tiny.pixels([scene.image for scene in scenes(8, seed=3)])
    direction = tiny.encode_text(["a red cat"])[0]

    def score(x):
        return torch.nn.functional.normalize(tiny.forward_image(x), dim=1) @ direction

    r = natural_magnitudes(pixels)
    start = pixels[:1] + 0.1 * _noise(*pixels[:1].shape, seed=4)
    best = maximise_phase(score, r, start, steps=12, lr=0.1)
    with torch.no_grad():
        before = score(maximise_phase(score, r, start, steps=0))
        assert score(best) > before + 0.1
    found = torch.fft.rfft2(best).abs()
    assert ((found - r).abs() / r.max()).max() < 1e-5


def test_magnitudes_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"Magnitudes have shape \(3, 4, 3\); for images .* give \(3, 4, 4\)"):
        maximise_phase(lambda x: x.sum((1, 2, 3)), torch.ones(3, 4, 3), torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match="give at least one"):
        natural_magnitudes(torch.zeros(0, 3, 4, 4))
