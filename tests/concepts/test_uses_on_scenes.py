"""Names and search on the tiny CLIP, judged by what is truly in the scenes."""

import numpy as np
import pytest
import torch

from vlsae.concepts import ConceptGallery, concept_directions, match_words
from vlsae.metrics import auroc
from vlsae.training import train
from vlsae.world import scenes

KINDS = ("object", "group", "color", "background", "texture")


@pytest.fixture(scope="module")
def described(tiny):
    """400 scenes of one object, their embeddings, a small MSAE of them, and words with what each is true of."""
    shown = scenes(400, seed=41, n_objects=(1, 0, 0, 0))
    x = tiny.encode_image([scene.image for scene in shown]).float()
    options = {"ks": [2, 4, 8, 16], "steps": 300, "batch_size": 200, "lr": 2e-3, "input_transform": "centre_sqrt_d"}
    sae = train(x, "nested_sparsity", n_latents=384, progress=False, **options)
    there = [{word for kind in KINDS for word in scene.labels[kind]} for scene in shown]
    vocabulary = sorted(set.union(*there))
    truth = np.array([[word in words for word in vocabulary] for words in there])
    return shown, x, sae, vocabulary, tiny.classifier(vocabulary, ("{}",)).float(), truth


def test_the_less_ambiguous_a_name_the_truer(described):
    """AUC of a named latent's codes for images of its word, by the least ratio to the second word.

    Measured: .91 at 1 (268 latents), .95 at 1.5 (140), .98 at 2 (63), of 384 latents and some 160 words.
    """
    _, x, sae, vocabulary, words, truth = described
    z, areas = sae.encode(x).detach().numpy(), []
    for ratio in (1.0, 1.5, 2.0):
        found = match_words(concept_directions(sae), words, vocabulary, min_ratio=ratio)
        named = [(i, vocabulary.index(match.word)) for i, match in enumerate(found) if match.word and z[:, i].any()]
        assert len(named) > 40
        areas.append(np.mean([auroc(z[:, i], truth[:, word]) for i, word in named]))
    assert areas[0] < areas[1] < areas[2] and areas[2] > 0.95


def test_a_stronger_colour_finds_things_of_that_colour(described):
    """The nearest other image has the wanted colour in .07 of the searches, and in .38 with the colour's latent at six times
    its 90 % quantile. Modest: some 170 latents are active in this MSAE, and a colour is more than one of them.
    """
    shown, x, sae, vocabulary, words, _ = described
    z, gallery = sae.encode(x).detach(), ConceptGallery(sae, x)
    latents: dict[str, int] = {}
    for i, match in enumerate(match_words(concept_directions(sae), words, vocabulary, min_ratio=1.25)):
        if match.word and z[:, i].any():
            best = latents.get(match.word, i)
            latents[match.word] = i if z[:, i].sum() >= z[:, best].sum() else best
    colours = {word: i for word, i in latents.items() if any(word in scene.labels["color"] for scene in shown)}
    assert len(colours) >= 7  # of ten
    before = after = n = 0
    for row in range(0, 100, 4):
        has = shown[row].labels["color"][0]
        for colour, latent in colours.items():
            if colour == has:
                continue
            strong = 6 * float(torch.quantile(z[:, latent][z[:, latent] > 0], 0.9))
            wanted = {latent: strong, **({colours[has]: 0.0} if has in colours else {})}
            for strengths in (None, wanted):
                found = next(hit.row for hit in gallery.search(x[row], strengths, top=2) if hit.row != row)
                right = colour in shown[found].labels["color"]
                before, after = before + (right and strengths is None), after + (right and strengths is not None)
            n += 1
    assert before / n < 0.12 and after / n > 0.25
