"""VL-SAE (card 47): its distance encoder in closed form, and what it finds in planted pairs beside its baselines."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from vlsae.activations import TwoModalities
from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.distance import DistanceDictionary
from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.metrics.concept_alignment import align_scores, classification
from vlsae.metrics.latent_translation import latent_translation
from vlsae.metrics.matching import best_partners
from vlsae.metrics.paired_activation import activation_consistency
from vlsae.metrics.reconstruction import reconstruction
from vlsae.training import grid, sweep, train
from vlsae.training.config import TrainConfig
from vlsae.training.objectives import OBJECTIVES, Step
from vlsae.training.objectives.base import Start
from vlsae.world import planted_pairs

RECIPE = {"n_latents": 64, "k": 6, "steps": 300, "batch_size": 256, "lr": 3e-3, "decay": 0.5, "progress": False}
PAIRED = {"objectives": "reconstruction,cross_reconstruction,matched_codes"}


def _vectors(n, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _shuffled(x):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]


def _ev(sae, x):
    return reconstruction(sae, x)["ev_centred"].value


def _iou(z_images, z_texts):
    return activation_consistency(z_images, z_texts)["code_iou"].value


# ---- the encoder ------------------------------------------------------------------------------------------------------


def test_the_encoder_is_1_lipschitz_and_ranks_by_cosine():
    """Test 1 of the card: by the triangle inequality a_i moves by no more than the unit vector does."""
    sae = DistanceDictionary(12, 40, k=5, seed=3)
    x, y = _vectors(200), _vectors(200, seed=1)
    a, b = sae.pre(x), sae.pre(y)
    moved = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).norm(dim=1, keepdim=True)
    assert ((a - b).abs() <= moved + 1e-5).all()
    assert torch.allclose(sae.pre(7 * x), a, atol=1e-5)
    assert ((a >= 0) & (a <= 2)).all()
    cosines = F.normalize(x, dim=1) @ F.normalize(sae.W_enc, dim=0)
    assert torch.equal(a.argsort(1), cosines.argsort(1))
    brute = 2 - (F.normalize(x, dim=1)[:, None] - F.normalize(sae.W_enc, dim=0).T).norm(dim=2)
    assert torch.allclose(a, brute, atol=1e-5)


def test_values_at_known_angles():
    sae = DistanceDictionary(2, 1, k=1)
    sae.W_enc.data = torch.tensor([[3.0], [0.0]])
    a = sae.pre(torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))[:, 0]
    assert a.tolist() == pytest.approx([2, 2 - 2**0.5, 0], abs=1e-5)
    a.sum().backward()
    assert torch.isfinite(sae.W_enc.grad).all()


# ---- the family -------------------------------------------------------------------------------------------------------


def test_views_are_dictionaries_of_one_modality(tmp_path):
    """Equal directions have equal codes in both (test 2 of the card); each view decodes by its own weights."""
    sae = VLSAE(12, 20, k=4, seed=2)
    sae.b_dec_text.data.fill_(1.0)
    x = _vectors(9)
    image, text = sae.view("image"), sae.view("text")
    z = sae.encode(x)
    assert torch.equal(image.encode(x), z)
    assert torch.allclose(text.encode(2 * x), z, atol=1e-5)
    assert torch.equal(image(x), sae(x))
    assert torch.allclose(text(x), z @ sae.W_dec_text + 1, atol=1e-6)
    assert torch.equal(text(x), sae.decode(z, modality="text"))
    again = load_dictionary(sae.save(tmp_path))
    assert isinstance(again, VLSAE)
    assert torch.equal(again.view("text")(x), text(x))


def test_a_unit_transform_gives_norms_back():
    """The encoder loses the norm; behind the transform "unit" reconstructions have that of their input's scale."""
    images, texts, _ = planted_pairs(16, 12, gap=1.0).sample(500)
    sae = train(TwoModalities(images, texts), "vl_sae", input_transform="unit", **{**RECIPE, "steps": 3})
    assert torch.allclose(sae(10 * images), 10 * sae(images), atol=1e-4)
    text = sae.view("text")
    assert torch.allclose(text(10 * texts), 10 * text(texts), atol=1e-4)
    with pytest.raises(ValueError, match="'unit' cannot be folded into 'vl_sae'"):
        sae.fold_transform()


def test_what_it_cannot_do_is_refused():
    x = _vectors(40)
    with pytest.raises(ValueError, match="modality='audio' is unknown; use one of image, text"):
        VLSAE(12, 20, k=4).view("audio")
    with pytest.raises(ValueError, match="Tensor\\w* does not say which is which; train it on TwoModalities"):
        train(x, "vl_sae", **RECIPE)
    with pytest.raises(ValueError, match="'cross_reconstruction' needs pairs, and 'topk' was given none"):
        train(TwoModalities(x, x), "topk", objectives="reconstruction,cross_reconstruction", **RECIPE)
    with pytest.raises(ValueError, match="k=21 must lie between 1 and n_latents=20"):
        VLSAE(12, 20, k=21)


def test_a_run_on_two_modalities_resumes_exactly(tmp_path):
    images, texts, _ = planted_pairs(16, 12, gap=1.0).sample(600)
    options = {**RECIPE, "decay": 0.0, "checkpoint_every": 5, "batch_size": 128, **PAIRED}

    class Interrupted(TwoModalities):
        def shuffled(self, *args, **kwargs):
            for number, item in enumerate(super().shuffled(*args, **kwargs)):
                if number == 3:
                    raise KeyboardInterrupt
                yield item

    whole = train(TwoModalities(images, texts), "vl_sae", **{**options, "steps": 7})
    train(TwoModalities(images, texts), "vl_sae", out=tmp_path, **{**options, "steps": 7})
    again = train(TwoModalities(images, texts), "vl_sae", out=tmp_path, **{**options, "steps": 7})
    assert torch.equal(whole.W_dec_text, again.W_dec_text)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(images, texts), "vl_sae", out=tmp_path / "cut", **{**options, "steps": 7})
    rest = train(TwoModalities(images, texts), "vl_sae", out=tmp_path / "cut", **{**options, "steps": 7})
    assert torch.equal(whole.W_dec_text, rest.W_dec_text)


def test_a_sweep_trains_it_as_alone():
    images, texts, _ = planted_pairs(16, 12, gap=1.0).sample(300)
    options = {**RECIPE, "steps": 5, "batch_size": 64, "warmup_steps": 1}
    one, other = sweep(TwoModalities(images, texts), grid(k=[2, 4]), family="vl_sae", **{**options, "k": 2})
    alone = train(TwoModalities(images, texts), "vl_sae", **{**options, "k": 4})
    assert torch.allclose(other.W_dec_text, alone.W_dec_text, atol=1e-6)
    assert not torch.allclose(one.W_dec_text, alone.W_dec_text, atol=1e-3)


# ---- the loss terms ---------------------------------------------------------------------------------------------------


def test_pairing_terms_by_hand():
    sae = VLSAE(2, 2, k=1)
    sae.W_dec.data, sae.W_dec_text.data = torch.eye(2), 2 * torch.eye(2)
    pre = torch.tensor([[1.0, 0.5], [0.0, 0.75]])  # an image and its text
    z = torch.tensor([[1.0, 0.0], [0.0, 0.75]])
    x = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    step = Step(sae, x, pre, z, x, torch.zeros(2, dtype=torch.bool), {"modality": torch.tensor([0, 1])})
    config, start = TrainConfig(options={"cross": 2.0, "matched": 3.0}), Start(2, 1.0)
    # image's code as text (2, 0) is right; text's code as image (0, .75) misses (1, 1) by 1 + 1/16
    assert OBJECTIVES.get("cross_reconstruction").make(config, start)(step).item() == pytest.approx(2 * 1.0625 / 2)
    # both latents are active on one side: (1 - 0)^2 + (.5 - .75)^2
    assert OBJECTIVES.get("matched_codes").make(config, start)(step).item() == pytest.approx(3 * 1.0625)


# ---- planted pairs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """24 shared and 8 private concepts a side, a gap of 1.5: `(planted, images, texts)` to train on."""
    made = planted_pairs(32, 24, 8, 2, private_k=1, gap=1.5, noise=0.02)
    images, texts, _ = made.sample(8000)
    return made, images, texts


@pytest.fixture(scope="module")
def published(pairs):
    _, images, texts = pairs
    return train(TwoModalities(images, texts), "vl_sae", b_dec_init="zeros", **RECIPE)


def test_codes_are_more_alike_than_the_baselines(pairs, published):
    """Test 3 of the card. Measured IoU of paired codes: VL-SAE .36, one SAE .24, one each .05 (chance .06), matched .25."""
    planted, images, texts = pairs
    own_images, own_texts, _ = planted.sample(2000, part=1)
    one = train(TwoModalities(images, texts), "topk", **RECIPE)
    of_images, of_texts = (train(x, "topk", seed=seed, **RECIPE) for seed, x in enumerate((images, texts)))
    z_images, z_texts = of_images.encode(own_images), of_texts.encode(own_texts)
    partners = best_partners(of_images.encode(images), of_texts.encode(texts))
    vl = _iou(published.encode(own_images), published.encode(own_texts))
    both = _iou(one.encode(own_images), one.encode(own_texts))
    matched = _iou(z_images, z_texts[:, partners])
    each = activation_consistency(z_images, z_texts)["code_iou"]
    assert vl > both + 0.08
    assert vl > matched + 0.08
    assert min(both, matched) > each.value + 0.1
    assert each.value < each.baselines["other pair"] + 0.02


def test_two_decoders_reconstruct_better_than_one(pairs, published):
    """Measured centred EV: .848 (images) and .855 (texts) against .831 and .847 with one decoder for both."""
    planted, images, texts = pairs
    own_images, own_texts, _ = planted.sample(2000, part=1)
    one = train(TwoModalities(images, texts), "distance", b_dec_init="zeros", **RECIPE)
    assert _ev(published.view("image"), own_images) > _ev(one, own_images)
    assert _ev(published.view("text"), own_texts) > _ev(one, own_texts)


def test_biases_alone_can_hold_the_gap():
    """With equal concepts in both, two decoders of equal atoms whose biases differ by the gap decode each exactly alike."""
    planted = planted_pairs(16, 8, k=2, gap=2.0)
    images, texts, z = planted.sample(50)
    sae = VLSAE(16, 8, k=2)
    sae.W_dec.data, sae.W_dec_text.data = planted.image_atoms, planted.text_atoms
    sae.b_dec.data, sae.b_dec_text.data = planted.image_bias, planted.text_bias
    assert torch.allclose(sae.decode(z), images, atol=1e-5)
    assert torch.allclose(sae.decode(z, modality="text"), texts, atol=1e-5)
    assert (sae.b_dec - sae.b_dec_text).norm().item() == pytest.approx(2.0, rel=1e-5)


def test_the_published_loss_does_not_know_pairs_and_ours_needs_them(pairs, published):
    """Measured IoU: published .362, on shuffled pairs .365; with the pairing used .624, on shuffled pairs .224."""
    planted, images, texts = pairs
    own_images, own_texts, z = planted.sample(2000, part=1)
    shuffled = TwoModalities(images, _shuffled(texts))
    there = z[:, planted.owner == 2] > 0

    def scores(sae):
        codes = sae.encode(own_images), sae.encode(own_texts)
        return _iou(*codes), latent_translation(codes[0], there, codes[1], there)["translated"].value

    fit = partial(train, arch="vl_sae", b_dec_init="zeros", **RECIPE)
    paired = scores(fit(TwoModalities(images, texts), **PAIRED))
    plain, plain_shuffled, control = scores(published), scores(fit(shuffled)), scores(fit(shuffled, **PAIRED))
    assert plain_shuffled[0] == pytest.approx(plain[0], abs=0.03)
    assert paired[0] > plain[0] + 0.15
    assert control[0] < plain[0] - 0.08
    assert paired[1] > 0.95
    assert control[1] < 0.8


def test_codes_help_where_nuisances_spoil_the_cosine():
    """Test 4 of the card. Measured accuracy at alpha 0 and 1: .817 and .879 with pairs used; alpha 0 is the model's own."""
    planted = planted_pairs(32, 24, 8, 1, private_k=2, gap=1.0, noise=0.02)
    images, texts, _ = planted.sample(6000)
    sae = train(TwoModalities(images, texts), "vl_sae", objectives="reconstruction,cross_reconstruction",
                b_dec_init="zeros", **{**RECIPE, "k": 4, "steps": 400})  # fmt: skip
    images, _, z = planted.sample(2000, part=1)
    classes, labels = planted.text_atoms[:24] + planted.text_bias, z[:, :24].argmax(1)
    codes = sae.encode(images), sae.encode(classes)
    plain = F.normalize(images, dim=1) @ F.normalize(classes, dim=1).T
    assert torch.equal(align_scores(images, classes, *codes, alpha=0.0), plain)
    accuracy = [classification(align_scores(images, classes, *codes, alpha=a), labels).value for a in (0.0, 1.0)]
    assert accuracy[1] > accuracy[0] + 0.03
