"""The alignment autoencoder: its loss in closed form, and two planted spaces that share no axis."""

import math

import pytest
import torch
import torch.nn.functional as F

from vlsae.activations import TwoModalities
from vlsae.metrics.concept_alignment import retrieval, similarities
from vlsae.metrics.latent_translation import latent_translation
from vlsae.training import train
from vlsae.training.alignment import AlignmentAutoencoder, align, info_nce
from vlsae.world import planted_pairs


def test_info_nce_closed_forms():
    """Orthonormal pairs: `-log(e^{1/tau} / (e^{1/tau} + B - 1))`; normalising takes lengths out."""
    x, tau = torch.eye(5), 0.5
    expected = math.log(math.exp(1 / tau) + 4) - 1 / tau
    assert info_nce(x, x, tau).item() == pytest.approx(expected, rel=1e-5)
    assert info_nce(3 * x, x, tau, normalise=True).item() == pytest.approx(expected, rel=1e-5)
    assert info_nce(3 * x, x, tau).item() < expected
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    assert info_nce(a, b).item() == pytest.approx(info_nce(b, a).item(), rel=1e-6)


RECIPE = {"epochs": 30, "batch_size": 256, "lr": 1e-3, "progress": False}


@pytest.fixture(scope="module")
def spaces():
    """Pairs to train on and to test on, texts turned into another space of another width; and R@1 before the turn."""
    planted = planted_pairs(24, 16, k=2, noise=0.02)
    turn = torch.randn(24, 32, generator=torch.Generator().manual_seed(9)) / 24**0.5
    (images, texts, _), (own_images, own_texts, z) = planted.sample(4000), planted.sample(500, part=1)
    most = retrieval(similarities(own_images, own_texts))["image_to_text"].value
    return (images, texts @ turn), (own_images, own_texts @ turn, z > 0), most


def _fit(images, texts, test, **options):
    """R@1 in the joint space, and the share of concepts translated by a VL-SAE trained there."""
    maps = align(images, texts, **RECIPE, **options)
    joint = maps.encode(test[0], "image"), maps.encode(test[1], "text")
    data = TwoModalities(maps.encode(images, "image"), maps.encode(texts, "text"))
    sae = train(data, "vl_sae", n_latents=48, k=3, steps=300, batch_size=256, lr=3e-3, decay=0.5, progress=False)
    found = latent_translation(sae.encode(joint[0]), test[2], sae.encode(joint[1]), test[2])
    return retrieval(similarities(*joint))["image_to_text"].value, found["translated"].value, maps


def test_two_spaces_become_one_and_vl_sae_reads_it(spaces):
    """Measured R@1 .772, as good as where both were planted in one space (.768), and all 16 concepts translated."""
    (images, texts), test, most = spaces
    hits, translated, maps = _fit(images, texts, test, normalise=True)
    assert hits > most - 0.05
    assert translated > 0.9
    back = maps.decode(maps.encode(test[1], "text"), "text")
    assert F.mse_loss(back, test[1]) < 0.4 * test[1].var()  # measured .27: the two losses share one linear map


def test_shuffled_pairs_align_nothing(spaces):
    """Measured R@1 .004 (chance .002), 2 of 16 concepts."""
    (images, texts), test, _ = spaces
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))
    hits, translated, _ = _fit(images, texts[order], test, normalise=True)
    assert hits < 0.03
    assert translated < 0.4


def test_the_released_code_without_norms_aligns_less(spaces):
    """Products in place of cosines reward long vectors: measured R@1 .320 against .772, 15 of 16 concepts."""
    (images, texts), test, most = spaces
    hits, translated, _ = _fit(images, texts, test)
    assert 0.1 < hits < most - 0.2
    assert translated > 0.7


def test_save_load_and_refusals(tmp_path):
    maps = AlignmentAutoencoder(4, 6, d=3, seed=1)
    again = AlignmentAutoencoder.load(maps.save(tmp_path))
    x = torch.randn(5, 6)
    assert torch.equal(again.encode(x, "text"), maps.encode(x, "text"))
    with pytest.raises(ValueError, match="modality='audio' is unknown"):
        maps.encode(x, "audio")
    with pytest.raises(ValueError, match="5 images and 4 texts were given"):
        align(x, x[:4])
    with pytest.raises(ValueError, match="d_image=0"):
        AlignmentAutoencoder(0, 3)
