"""Diagnostics of two modalities against closed forms, and on planted pairs whose private concepts are known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.metrics.bimodal_ablation import bimodal_ablation, without_latents
from vlsae.metrics.co_occurrence import co_occurrence
from vlsae.metrics.concept_alignment import align_scores, classification, retrieval, similarities
from vlsae.metrics.intra_inter import intra_inter
from vlsae.metrics.latent_translation import latent_translation
from vlsae.metrics.modality_gap import centred_modalities, modality_gap
from vlsae.metrics.modality_score import bimodal_latents, modality_score
from vlsae.metrics.paired_activation import activation_consistency, paired_correlation
from vlsae.world import planted_pairs


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_modality_gap_of_opposite_cones():
    """Unit vectors at angle t around +e and -e have centres cos t apart from 0: a gap of 2 cos t."""
    t = 0.7
    ring = torch.tensor([[math.cos(t), math.sin(t)], [math.cos(t), -math.sin(t)]])
    assert modality_gap(5 * ring, -ring).value == pytest.approx(2 * math.cos(t), rel=1e-6)
    images, texts = centred_modalities(ring, -ring)
    assert modality_gap(images, texts).value == pytest.approx(0, abs=1e-6)


def test_centring_undoes_a_shift():
    """Equal vectors of equal norm behind a shift of one modality: unequal lengths are all that centring leaves."""
    x = F.normalize(_random(400, 16), dim=1)
    shift = 3 * F.normalize(_random(1, 16, seed=1), dim=1)
    images, texts = centred_modalities(x, x + shift)
    assert modality_gap(x, x + shift).value > 0.8
    assert modality_gap(images, texts).value < 0.1


def test_modality_score_of_known_energies():
    images, texts = torch.tensor([[3.0, 1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 2.0, 0.0]])
    score = modality_score(images, texts)
    assert score[:3].tolist() == pytest.approx([0.8, 0, -1])
    assert torch.isnan(score[3])
    assert bimodal_latents(images, texts, 0.5).tolist() == [False, True, False, False]
    assert torch.allclose(modality_score(texts, images), -score, equal_nan=True)
    with pytest.raises(ValueError, match="4 and 3 latents; give codes of one dictionary"):
        modality_score(images, texts[:, :3])


def test_paired_correlation_is_numpys():
    a, b = _random(50, 6).relu(), _random(50, 6, seed=1).relu()
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(6)]
    assert paired_correlation(a, b).tolist() == pytest.approx(expected, rel=1e-5)
    a[:, 2] = 0
    assert torch.isnan(paired_correlation(a, b)[2])
    with pytest.raises(ValueError, match="give pairs, row by row"):
        paired_correlation(a, b[:9])


def test_consistency_by_hand():
    """Supports {0, 1} and {1, 2}: one of three shared; (3, 4, 0) and (0, 4, 3): cosine 16 / 25."""
    found = activation_consistency(torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[0.0, 4.0, 3.0]]))
    assert found["code_iou"].value == pytest.approx(1 / 3)
    assert found["code_cosine"].value == pytest.approx(0.64)


def test_co_occurrence_of_independent_sides_is_chance():
    fires = torch.rand(2, 200_000, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.2, 0.0])
    measured, chance = co_occurrence(*fires.float())
    assert chance[0].item() == pytest.approx(0.25 / 0.75, abs=0.01)
    assert measured[:2].tolist() == pytest.approx(chance[:2].tolist(), abs=0.01)
    assert torch.isnan(measured[2])


def test_retrieval_counts_no_ties():
    assert retrieval(torch.ones(4, 4))["image_to_text"].value == 0
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.1], [0.0, 0.0, 0.3]])
    found = retrieval(scores)
    assert found["image_to_text"].value == pytest.approx(2 / 3)
    assert found["text_to_image"].value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="give pairs"):
        retrieval(scores[:2])


def test_classification_and_mixed_scores():
    x, c, z, w = _random(30, 5), _random(4, 5, seed=1), _random(30, 9, seed=2).relu(), _random(4, 9, seed=3).relu()
    mixed = align_scores(x, c, z, w, alpha=0.5)
    assert torch.allclose(mixed, similarities(x, c) + 0.5 * similarities(z, w))
    labels = mixed.argmax(1)
    assert classification(mixed, labels).value == 1
    assert classification(mixed, (labels + 1) % 4).value == 0
    with pytest.raises(ValueError, match="30 images and 4 labels"):
        classification(mixed, labels[:4])


def test_intra_inter_equals_brute_force():
    z_images, z_texts = (_random(40, 6, seed=s).relu() for s in (0, 1))
    z_texts[:, 5] = 0
    images, texts = _random(40, 8, seed=2), _random(40, 8, seed=3)

    def centre(z, x, i):
        rows = z[:, i].argsort(descending=True)[:3]
        return F.normalize(F.normalize(x, dim=1)[rows[z[rows, i] > 0]].mean(0), dim=0)

    cosines = [[float(centre(z_images, images, i) @ centre(z_texts, texts, j)) for j in range(5)] for i in range(5)]
    own = [cosines[i][i] for i in range(5)]
    others = [cosines[i][j] for i in range(5) for j in range(5) if i != j]
    found = intra_inter(z_images, z_texts, images, texts, top=3)
    assert found["intra"].value == pytest.approx(sum(own) / 5, abs=1e-5)
    assert found["inter"].value == pytest.approx(sum(others) / 20, abs=1e-5)
    assert found["shared"].value == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="40 codes and 39 embeddings of texts"):
        intra_inter(z_images, z_texts, images, texts[:39])


def test_translation_of_a_permuted_dictionary():
    """Latents of texts in another order: right where the order is undone, and where it happens to agree."""
    labels = torch.rand(300, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    z, order = labels.float() * 2, torch.tensor([1, 0, 2, 3, 4, 5])
    right = latent_translation(z, labels, z, labels)
    assert right["same_latent"].value == right["translated"].value == 1
    assert right["same_latent"].baselines["other concept"] == 0
    swapped = latent_translation(z, labels, z[:, order], labels)
    assert swapped["same_latent"].value == swapped["translated"].value == pytest.approx(4 / 6)
    silent = z.clone()
    silent[:, 2] = 0  # in texts the concept has no latent, and the image's latent tells nothing
    assert latent_translation(z, labels, silent, labels)["translated"].value == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="0 concepts are there in some"):
        latent_translation(z, torch.ones_like(labels), z, labels)


# ---- ablation of what is known ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    """A dictionary of the planted concepts, orthonormal, and of each side's offset: `(dictionary, images, texts)`."""
    made = planted_pairs(64, 40, 8, 3, private_k=1, noise=0.0)
    basis = torch.linalg.qr(_random(64, 64))[0]
    _, _, z = made.sample(300)
    images, texts = ((z * (made.owner != other)) @ basis[: z.shape[1]] for other in (1, 0))
    images, texts = images + 1.5 * basis[-1], texts + 1.5 * basis[-2]
    sae = TopKDictionary(64, 64, k=8)
    sae.W_dec.data, sae.W_enc.data = basis.clone(), basis.T.clone()
    return sae.requires_grad_(False), images, texts


def test_scores_of_planted_concepts(known):
    """Shared concepts lie near 0, private ones and offsets at +1 and -1."""
    sae, images, texts = known
    score = modality_score(*(sae.encode(x) * (sae.encode(x) > 1e-3) for x in (images, texts)))
    assert score[:40].abs().max() < 1e-3
    assert (score[40:48] == 1).all()
    assert (score[48:56] == -1).all()
    assert (score[63], score[62]) == (1, -1)


def test_the_gap_goes_with_unimodal_latents_and_alignment_with_bimodal_ones(known):
    """What arXiv 2602.06218 claims holds where it is planted: the gap is in the offsets, the pairing in shared concepts."""
    sae, images, texts = known
    found = bimodal_ablation(sae, images, texts)
    gap = {name: scores["modality_gap"].value for name, scores in found.items()}
    hits = {name: scores["image_to_text"].value for name, scores in found.items()}
    assert gap["original"] > 0.8
    assert gap["without unimodal"] < 1e-3
    assert hits["without unimodal"] == 1
    assert gap["without bimodal"] > gap["original"]
    assert hits["without bimodal"] < 0.05
    assert gap["centred"] < 0.1
    assert hits["centred"] > 0.95


def test_a_gap_in_the_biases_cannot_be_ablated():
    """A VL-SAE's two biases hold the gap as exactly as two latents would: no latent's removal closes it."""
    planted = planted_pairs(32, 12, k=2, gap=2.0)
    images, texts, _ = planted.sample(200)
    sae = VLSAE(32, 12, k=2)
    sae.W_enc.data, sae.W_dec.data, sae.W_dec_text.data = planted.image_atoms.T, planted.image_atoms, planted.text_atoms
    sae.b_dec.data, sae.b_dec_text.data = planted.image_bias, planted.text_bias
    found = bimodal_ablation(sae.view("image"), images, texts, text_dictionary=sae.view("text"))
    assert found["without unimodal"]["modality_gap"].value > 0.9 * found["original"]["modality_gap"].value
    assert found["centred"]["modality_gap"].value < 0.1


def test_removing_latents_keeps_the_error(known):
    sae, images, _ = known
    none, every = torch.zeros(64, dtype=torch.bool), torch.ones(64, dtype=torch.bool)
    x = images + 0.1
    assert torch.allclose(without_latents(sae, x, none), x, atol=1e-6)
    assert torch.allclose(without_latents(sae, x, every), x - sae(x) + sae.b_dec, atol=1e-5)
