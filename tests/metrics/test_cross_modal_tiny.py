"""Images and captions of scenes in the tiny CLIP's space: what VL-SAE and its baselines share, and what claims hold here."""

import pytest
import torch

from vlsae.activations import TwoModalities
from vlsae.metrics.bimodal_ablation import bimodal_ablation
from vlsae.metrics.concept_alignment import retrieval, similarities
from vlsae.metrics.intra_inter import intra_inter
from vlsae.metrics.latent_translation import latent_translation
from vlsae.metrics.matching import best_partners
from vlsae.metrics.paired_activation import activation_consistency
from vlsae.training import train
from vlsae.world import concepts, scenes

KINDS = ("object", "color", "background", "texture", "size")
WORDS = [word for kind in KINDS for word in concepts()[kind]]
RECIPE = {"n_latents": 384, "k": 8, "steps": 300, "batch_size": 128, "lr": 3e-3, "decay": 0.5, "progress": False}


def _embed(tiny, n_train, n_test):
    """Images, captions and the words that are there, of scenes to train on and of others; and the words' embeddings."""
    parts = []
    for n, seed in ((n_train, 4100), (n_test, 4200)):
        drawn = scenes(n, seed=seed)
        there = [{word for kind in KINDS for word in scene.labels[kind]} for scene in drawn]
        labels = torch.tensor([[word in words for word in WORDS] for words in there])
        parts.append((tiny.encode_image(drawn), tiny.encode_text([s.caption for s in drawn]), labels))
    return *parts, tiny.encode_text(WORDS)


def _code(embeddings, recipe):
    """Dictionaries, and codes of other scenes' images, of their captions and of the words alone, by dictionary."""
    (images, texts, _), (own_images, own_texts, _), words = embeddings
    data = TwoModalities(images, texts)
    shuffled = TwoModalities(images, texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))])
    cross = {"objectives": "reconstruction,cross_reconstruction"}
    made = {
        "vl_sae": train(data, "vl_sae", **recipe),
        "paired": train(data, "vl_sae", **recipe, **cross),
        "paired, shuffled": train(shuffled, "vl_sae", **recipe, **cross),
        "one": train(data, "topk", **recipe),
    }
    codes = {name: tuple(sae.encode(x) for x in (own_images, own_texts, words)) for name, sae in made.items()}
    of_images, of_texts = train(images, "topk", **recipe), train(texts, "topk", seed=1, **recipe)
    each = of_images.encode(own_images), of_texts.encode(own_texts), of_texts.encode(words)
    partners = best_partners(of_images.encode(images), of_texts.encode(texts))
    codes |= {"each": each, "each, matched": (each[0], each[1][:, partners], each[2][:, partners])}
    return made, codes


def _score(embeddings, codes):
    """Every score by name of the dictionary."""
    _, (images, texts, labels), words = embeddings
    alone = torch.eye(len(WORDS), dtype=torch.bool)
    found = {}
    for name, (z_images, z_texts, z_words) in {**codes, "embeddings": (images, texts, words)}.items():
        in_captions = latent_translation(z_images, labels, z_texts, labels)
        of_words = latent_translation(z_images, labels, z_words, alone)
        found[name] = {
            "iou": activation_consistency(z_images, z_texts)["code_iou"].value,
            "captions": in_captions["same_latent"].value,
            "words": of_words["translated"].value,
            "same word": of_words["same_latent"].value,
            "chance": of_words["translated"].baselines["other concept"],
            "R@1": retrieval(similarities(z_images, z_texts))["image_to_text"].value,
            **{key: metric.value for key, metric in intra_inter(z_images, z_texts, images, texts).items()},
        }
    return found


@pytest.fixture(scope="module")
def embeddings(tiny):
    return _embed(tiny, 800, 300)


@pytest.fixture(scope="module")
def coded(embeddings):
    return _code(embeddings, RECIPE)


@pytest.fixture(scope="module")
def scores(embeddings, coded):
    return _score(embeddings, coded[1])


@pytest.mark.slow
def test_with_longer_training_one_dictionary_translates_as_well(tiny):
    """Against what is published: VL-SAE's codes of a pair stay more alike, but its latents are no better translators.

    VL-SAE, pairs used, one SAE, one each matched: IoU .39, .42, .13, .17; R@1 of 1,000 by codes .88, .93, .43, .52; words
    translated .97, .97, .98, .88; the very latent of the word .58, .67, .73, .61; intra .07, .08, .12, -.07. Shuffled
    pairs: IoU .03, R@1 .10, but .82 of words, which the encoder's distance alone translates.
    """
    embeddings = _embed(tiny, 3000, 1000)
    found = _score(embeddings, _code(embeddings, {**RECIPE, "n_latents": 512, "steps": 800, "batch_size": 256})[1])
    vl, paired, one = found["vl_sae"], found["paired"], found["one"]
    assert min(vl["iou"], paired["iou"]) > one["iou"] + 0.15
    assert paired["R@1"] > vl["R@1"] + 0.01 > one["R@1"] + 0.3
    assert abs(vl["words"] - one["words"]) < 0.04
    assert one["same word"] > vl["same word"] + 0.05
    assert one["intra"] > vl["intra"]
    assert vl["words"] > found["each, matched"]["words"] + 0.03
    assert found["paired, shuffled"]["iou"] < 0.1


def _directions(labels, images, words):
    """Share of words whose images' mean, less that of all images, is nearest to the word's embedding, less all words' mean."""
    present = labels.any(0)
    means = labels.float().T @ images / labels.sum(0)[:, None].clamp_min(1)
    nearest = similarities(means - images.mean(0), words - words.mean(0)).argmax(1)
    return float((nearest == torch.arange(len(labels.T)))[present].float().mean())


def test_codes_of_pairs_are_more_alike_in_vl_sae(scores):
    """As published. IoU of paired codes: VL-SAE .27, pairs used .34, one SAE .10, one each .01, matched .07.

    Retrieval by codes alone: .64, .84, .38, .00, .12; by the embeddings themselves 1.00, which no code reaches.
    """
    for key, gain in (("iou", 0.1), ("R@1", 0.15)):
        assert scores["vl_sae"][key] > scores["one"][key] + gain
        assert scores["paired"][key] > scores["vl_sae"][key] + 0.03
        assert scores["each, matched"][key] > scores["each"][key] + 0.03
        assert scores["paired, shuffled"][key] < scores["vl_sae"][key] - gain
    assert scores["one"]["iou"] > scores["each, matched"]["iou"]
    assert scores["embeddings"]["R@1"] > 0.98 > scores["paired"]["R@1"]


def test_latents_translate_words(scores, embeddings):
    """A concept's latent in images, read in words alone: VL-SAE .46, pairs used .53 (shuffled .21), one SAE .43, one each
    .00, matched .13, coordinates of embeddings .21, chance below .01.

    With the truth known no dictionary is needed: the mean of a concept's images, less that of all, is nearest to its
    word in .97 of 164 cases.
    """
    _, (images, _, labels), words = embeddings
    translated = {name: found["words"] for name, found in scores.items()}
    assert translated["paired"] > translated["vl_sae"] + 0.02
    assert translated["vl_sae"] > translated["each, matched"] + 0.15
    assert translated["paired, shuffled"] < translated["vl_sae"] - 0.15
    assert translated["each"] < 0.05
    assert all(found["chance"] < 0.03 for found in scores.values())
    assert scores["paired"]["captions"] > scores["vl_sae"]["captions"] > scores["one"]["captions"]
    assert _directions(labels, images, words) > 0.9 > translated["paired"]


def test_intra_similarity_does_not_tell_vl_sae_from_one_dictionary(scores):
    """Against what is published: intra .00 (VL-SAE), .01 (pairs used) and .04 (one SAE), inter -.27, -.29 and -.24.

    The judge is the model itself, whose gap makes every cosine of an image and a text small; separate dictionaries
    fail, as published (intra -.28 as inter).
    """
    assert abs(scores["vl_sae"]["intra"] - scores["one"]["intra"]) < 0.12
    for name in ("vl_sae", "paired", "one"):
        assert scores[name]["intra"] > scores[name]["inter"] + 0.15
    assert scores["each"]["intra"] == pytest.approx(scores["each"]["inter"], abs=0.05)


def test_what_closes_the_gap(embeddings, coded):
    """Unimodal latents of one SAE hold most of the gap (.78 to .25); VL-SAE's do not (.78), its biases hold it.

    Against arXiv 2602.06218, retrieval survives without the bimodal latents of one SAE just as well (.96 and .96, random
    .92): the error that stays holds the pairing as well. Centring closes the gap (.005) at no cost (1.00).
    """
    made, (_, (images, texts, _), _) = coded[0], embeddings
    one = bimodal_ablation(made["one"], images, texts)
    sides = made["vl_sae"].view("image"), made["vl_sae"].view("text")
    two = bimodal_ablation(sides[0], images, texts, text_dictionary=sides[1])
    gap = {name: found["modality_gap"].value for name, found in one.items()}
    hits = {name: found["image_to_text"].value for name, found in one.items()}
    assert gap["without unimodal"] < 0.5 * gap["original"] < gap["without random"] + 0.1
    assert gap["without bimodal"] > 0.9 * gap["original"]
    assert hits["without bimodal"] > 0.85
    assert two["without unimodal"]["modality_gap"].value > 0.9 * gap["original"]
    assert gap["centred"] < 0.05
    assert hits["centred"] > 0.98
