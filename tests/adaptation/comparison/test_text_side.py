"""Sums of a logit's parts, and class embeddings in words."""

import pytest
import torch
import torch.nn.functional as F

from tests.adaptation.comparison.adaptations import NAMES, SITE, everything, swapped
from vlsae.adaptation.comparison.text_side import class_concepts, logit_parts
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.splice import SpLiCE


@pytest.fixture(scope="module")
def pooled(tiny, labelled):
    sae = TopKDictionary(192, 64, k=4, seed=2).requires_grad_(False)
    sae.b_dec.copy_(tiny.tokens(labelled[0], "vision.pooled")[:, 0].mean(0))
    sae.metadata["site"] = "vision.pooled"
    return sae


def test_exact_parts_are_the_logit(tiny, labelled, pooled):
    """And a latent's part is what the logit loses without it, at the image's own norm."""
    images, labels = labelled
    adapted = everything(tiny)
    found = logit_parts(adapted, pooled, images, labels, NAMES, batch_size=5, progress=False)
    logits = adapted.head(NAMES)(adapted.encode_image(images))[range(12), labels]
    assert (found.logit - logits).abs().max() < 1e-4 > found.gap.abs().max()
    x = adapted.tokens(images, "vision.pooled")[:, 0]
    z, s = pooled.encode(x), int(found.latents.abs().sum(0).argmax())
    without = x - z[:, [s]] * pooled.W_dec[s]
    lost = (x - without) / x.norm(dim=1, keepdim=True) @ adapted.head(NAMES).weight.T * adapted.logit_scale
    assert (found.latents[:, s] - lost[range(12), labels]).abs().max() < 1e-4
    assert found.latents[:, s].abs().max() > 0.1


def test_what_a_changed_head_makes_of_the_same_latents(tiny, labelled, pooled):
    """Base's parts of the other class: the vision tower stays, only the weights are swapped."""
    images, labels = labelled
    one = logit_parts(swapped(tiny), pooled, images, labels, NAMES, progress=False)
    other = logit_parts(tiny, pooled, images, [1 - c for c in labels], NAMES, progress=False)
    assert torch.allclose(one.latents, other.latents, atol=1e-5)


def test_gradients_close_the_gap_along_the_path(tiny, labelled, coarse):
    """More steps of the path leave less; the gradient alone is the path's last point."""
    images, labels = labelled[0][4:8], labelled[1][4:8]
    parts = {steps: logit_parts(tiny, coarse, images, labels, NAMES, steps=steps, progress=False) for steps in (1, 16)}
    gap = {steps: found.gap.abs().max() for steps, found in parts.items()}
    assert gap[16] < 0.02 * (parts[16].logit - parts[16].bias).abs().max() < gap[1]
    step = logit_parts(tiny, coarse, images, labels, NAMES, method="gradient", progress=False)
    x = tiny.tokens(images, SITE).requires_grad_()
    with tiny.edit(SITE, lambda _: x):
        embeddings = F.normalize(tiny.forward_image(tiny.pixels(images)), dim=-1)
    slope = torch.autograd.grad(tiny.head(NAMES)(embeddings)[range(4), labels].sum(), x)[0]
    expected = (coarse.encode(x.detach()) * (slope @ coarse.W_dec.T)).sum(1)
    assert (step.latents - expected).abs().max() < 1e-3 * expected.abs().max()


def test_mistakes_are_explained(tiny, labelled, coarse):
    with pytest.raises(ValueError, match="not everything is linear"):
        logit_parts(tiny, coarse, *labelled, NAMES, method="exact", progress=False)
    with pytest.raises(ValueError, match="use 'exact', 'gradient'"):
        logit_parts(tiny, coarse, *labelled, NAMES, method="lrp", progress=False)


def test_class_embeddings_in_words(tiny):
    """Classes that swapped their embeddings swap their words; changes are the differences of weights."""
    splice = SpLiCE(tiny, "tiny", progress=False)
    found = class_concepts(splice, tiny, swapped(tiny), NAMES)
    assert found[0].before == found[1].after and found[1].before == found[0].after
    weights = tiny.classifier(NAMES)
    assert found[0].cosine == pytest.approx(float(weights[0] @ weights[1]), abs=1e-6)
    before, after = dict(found[0].before), dict(found[0].after)
    assert found[0].before[0][0] == "cat" and found[0].after[0][0] == "ball"
    expected = {word: after.get(word, 0) - before.get(word, 0) for word in before | after}
    assert dict(found[0].changes) == pytest.approx({word: step for word, step in expected.items() if step}, abs=1e-6)
