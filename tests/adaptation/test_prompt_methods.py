"""MaPLe, CoCoOp, KgCoOp, IVLP and PromptSRC, against the same computed block by block, loops and closed forms."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.models import BUILDERS
from vlsae.adaptation.adaptation import TuningBatch
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.checkpoint import read_adaptation
from vlsae.adaptation.methods import cocoop
from vlsae.adaptation.methods.cocoop import CoCoOp
from vlsae.adaptation.methods.coop import CoOp
from vlsae.adaptation.methods.ivlp import IVLP
from vlsae.adaptation.methods.kgcoop import KgCoOp
from vlsae.adaptation.methods.maple import MaPLe
from vlsae.adaptation.methods.promptsrc import PromptSRC
from vlsae.adaptation.prompts import token_ids
from vlsae.adaptation.tiny import MAPLE_FOLDER, TEST, TINY, accuracy, few_shot_task, train
from vlsae.adaptation.tuning import TuningConfig, _tune
from vlsae.world import scenes

NAMES = ["cat", "fire_truck", "dog"]


@pytest.fixture(scope="module")
def drawn():
    return scenes(3, seed=4)


def moved(adaptation, size=0.3):
    """The same with all parameters far from their start, so that nothing learned can be overlooked."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adaptation.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return adaptation


def replaced(x, start, vectors):
    return torch.cat([x[:, :start], vectors.expand(len(x), -1, -1), x[:, start + len(vectors) :]], 1)


def open_clip_texts(model, texts, ctx, deep):
    m, ids = model.model, model.tokenize(texts)
    x = replaced(m.token_embedding(ids), 1, ctx) + m.positional_embedding
    for i, block in enumerate(m.transformer.resblocks):
        x = block(replaced(x, 1, deep[i - 1]) if 0 < i <= len(deep) else x, attn_mask=m.attn_mask)
    x = m.ln_final(x)[torch.arange(len(texts)), ids.argmax(1)] @ m.text_projection
    return x / x.norm(dim=1, keepdim=True)


def open_clip_images(model, images, shallow, deep):
    v, n = model.model.visual, len(shallow)
    x = v.conv1(model.pixels(images)).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    x = v.ln_pre(torch.cat([x, shallow.expand(len(x), -1, -1)], 1))
    for i, block in enumerate(v.transformer.resblocks):
        x = block(replaced(x, x.shape[1] - n, deep[i - 1]) if 0 < i <= len(deep) else x)
    x = v.ln_post(x[:, 0]) @ v.proj
    return x / x.norm(dim=1, keepdim=True)


def hf_texts(model, texts, ctx, deep):
    m = model.model.text_model
    ids = token_ids(model.tokenize(texts))
    x = m.embeddings(inputs_embeds=replaced(m.embeddings.token_embedding(ids), 1, ctx))
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
    for i, block in enumerate(m.encoder.layers):
        x = block(replaced(x, 1, deep[i - 1]) if 0 < i <= len(deep) else x, attention_mask=mask)
    x = model.model.text_projection(m.final_layer_norm(x)[torch.arange(len(texts)), ids.argmax(1)])
    return x / x.norm(dim=1, keepdim=True)


def hf_images(model, images, shallow, deep):
    m, n = model.model.vision_model, len(shallow)
    x = m.embeddings(model.pixels(images))
    x = m.pre_layrnorm(torch.cat([x, shallow.expand(len(x), -1, -1)], 1))
    for i, block in enumerate(m.encoder.layers):
        x = block(replaced(x, x.shape[1] - n, deep[i - 1]) if 0 < i <= len(deep) else x, attention_mask=None)
    x = model.model.visual_projection(m.post_layernorm(x[:, 0]))
    return x / x.norm(dim=1, keepdim=True)


BY_HAND = {"tiny": (open_clip_texts, open_clip_images), "hf CLIP": (hf_texts, hf_images)}
WRITTEN = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]


@torch.no_grad()
@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("depth", [1, 2])
def test_maple_is_what_the_blocks_compute_one_by_one(name, depth, drawn):
    model, (texts, images) = BUILDERS[name](), BY_HAND[name]
    maple = moved(MaPLe(model, depth=depth, seed=1))
    adapted = AdaptedBackbone(model, maple)
    deep = list(maple.compound_prompts_text)
    assert len(deep) == depth - 1
    shallow = maple.ctx @ maple.proj.weight.T + maple.proj.bias
    deep_vision = [p @ f.weight.T + f.bias for p, f in zip(deep, maple.compound_prompt_projections)]
    plain, expected = model.classifier(NAMES), texts(model, WRITTEN, maple.ctx, deep)
    assert torch.allclose(adapted.classifier(NAMES), expected, atol=1e-5)  # float32 in another order
    assert not torch.allclose(plain, expected, atol=1e-2)
    expected = images(model, drawn, shallow, deep_vision)
    assert torch.allclose(adapted.encode_image(drawn), expected, atol=1e-5)
    assert not torch.allclose(model.encode_image(drawn), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("method", [IVLP, PromptSRC])
def test_independent_prompts_are_what_the_blocks_compute_one_by_one(tiny, method, drawn):
    ivlp = moved(method(tiny, n_ctx=3, n_prompts=2, text_depth=2, vision_depth=4))
    adapted = AdaptedBackbone(tiny, ivlp)
    assert (len(ivlp.deep_ctx), len(ivlp.deep)) == (1, 3)
    expected = open_clip_texts(tiny, WRITTEN, ivlp.ctx, list(ivlp.deep_ctx))
    assert torch.allclose(adapted.classifier(NAMES), expected, atol=1e-5)
    expected = open_clip_images(tiny, drawn, ivlp.shallow, list(ivlp.deep))
    assert torch.allclose(adapted.encode_image(drawn), expected, atol=1e-5)


def test_prompts_start_as_published(tiny):
    """Shapes of the released files at 9 blocks, and the two first words of the four as MaPLe's context."""
    assert MaPLe(tiny).settings["depth"] == 2  # the text tower has no more blocks
    assert (IVLP(tiny).settings["text_depth"], IVLP(tiny).settings["vision_depth"]) == (2, 6)
    words = tiny.token_embedding()(tiny.tokenize(["a photo of a cat"]))[0, 1:5]
    assert torch.equal(MaPLe(tiny).ctx, words[:2])
    assert all(torch.equal(kind(tiny).ctx, words) for kind in (IVLP, CoCoOp, KgCoOp))
    assert MaPLe.recipe == {"optimizer": "sgd", "lr": 3.5e-3, "epochs": 5, "batch_size": 4}
    assert PromptSRC.recipe == IVLP.recipe == {"optimizer": "sgd", "lr": 2.5e-3, "epochs": 20, "batch_size": 4}
    assert KgCoOp.recipe == {"optimizer": "sgd", "lr": 2e-3, "epochs": 100, "batch_size": 128}
    assert CoCoOp.recipe == {"optimizer": "sgd", "lr": 2e-3, "epochs": 10, "batch_size": 1}
    before = torch.random.get_rng_state()
    assert torch.equal(MaPLe(tiny, seed=3).proj.weight, MaPLe(tiny, seed=3).proj.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.no_grad()
def test_cocoop_equals_a_loop_over_images_however_many_at_once(tiny, drawn, monkeypatch):
    learned = moved(CoCoOp(tiny))
    adapted = AdaptedBackbone(tiny, learned)
    x = adapted.encode_image(drawn)
    net = learned.meta_net
    assert net.linear1.weight.shape == (192 // 16, 192)
    rows = []
    for image in x:
        bias = net.linear2.weight @ (net.linear1.weight @ image + net.linear1.bias).clamp_min(0) + net.linear2.bias
        rows.append(tiny.logit_scale * open_clip_texts(tiny, WRITTEN, learned.ctx + bias, []) @ image)
    expected = torch.stack(rows)
    head = adapted.head(NAMES)
    assert torch.allclose(head(x), expected, atol=1e-5 * tiny.logit_scale)
    assert expected.std(0).min() > 0.1  # images do differ
    monkeypatch.setattr(cocoop, "TEXTS_AT_ONCE", 4)
    seen = []
    with tiny_texts(adapted, seen):
        assert torch.allclose(head(x), expected, atol=1e-5 * tiny.logit_scale)
    assert seen == [3, 3, 3]  # texts of one image at a time
    with pytest.raises(ValueError, match="no fixed class embeddings"):
        adapted.classifier(NAMES)


def tiny_texts(model, seen):
    """Keep how many texts every forward pass has."""
    return model.edit("text.0.resid_pre", lambda tokens: seen.append(len(tokens)) or tokens)


@torch.no_grad()
def test_cocoop_without_its_network_is_coop(tiny, drawn):
    conditional, plain = moved(CoCoOp(tiny)), CoOp(tiny, n_ctx=4, words="a photo of a")
    for p in conditional.meta_net.parameters():
        p.zero_()
    plain.ctx.copy_(conditional.ctx)
    found = [AdaptedBackbone(tiny, a).zero_shot(drawn, NAMES) for a in (conditional, plain)]
    assert torch.allclose(*found, atol=1e-5)


def batch_of(model, drawn, templates, **fields):
    return TuningBatch(torch.tensor([0, 1, 2]), NAMES, templates, model.encode_image(drawn), model.pixels(drawn))


def test_kgcoop_adds_the_distance_to_the_hand_written_prompt(tiny, drawn):
    batch = batch_of(tiny, drawn, ["a photo of a {}."])
    clean = TuningBatch(batch.labels, ["cat", "tree", "dog"], batch.templates, batch.features)
    learned = KgCoOp(tiny, weight=8.0)
    adapted = AdaptedBackbone(tiny, learned)
    at_start = learned.loss(adapted, clean) - F.cross_entropy(learned.logits(adapted, clean), clean.labels)
    assert abs(at_start.item()) < 1e-5  # the context is the prompt's own words
    with torch.no_grad():
        learned.ctx.copy_(torch.randn(4, 128, generator=torch.Generator().manual_seed(0)))
    added = learned.loss(adapted, clean) - F.cross_entropy(learned.logits(adapted, clean), clean.labels)
    cosines = [
        float(adapted.classifier([name])[0] @ tiny.encode_text([f"a photo of a {name}."])[0])
        for name in clean.class_names
    ]
    assert added.item() == pytest.approx(8 * (1 - sum(cosines) / 3), rel=1e-4)
    assert added.item() > 0.1


def test_promptsrc_is_held_by_three_distances(tiny, drawn):
    """The regulariser is 0 at the frozen model's own outputs, and each term is its formula elsewhere."""
    learned = moved(PromptSRC(tiny), 0.05)
    adapted = AdaptedBackbone(tiny, learned)
    batch = batch_of(tiny, drawn, ["a photo of a {}.", "{}"])
    x0, w0, scale = tiny.encode_image(drawn), tiny.classifier(NAMES, batch.templates), tiny.logit_scale
    assert learned.regulariser(adapted, batch, x0, w0, scale * x0 @ w0.T).abs() < 1e-5
    x, w = adapted.encode_image(drawn), adapted.classifier(NAMES)
    logits, frozen = scale * x @ w.T, scale * x0 @ w0.T
    image = 10 * (x - x0).abs().sum() / x.numel()
    text = 25 * (w - w0).abs().sum() / w.numel()
    p = frozen.softmax(1)
    kl = (p * (p / logits.softmax(1)).log()).sum() / 9
    for got, wanted in (
        (learned.regulariser(adapted, batch, x, w0, frozen), image),
        (learned.regulariser(adapted, batch, x0, w, frozen), text),
        (learned.regulariser(adapted, batch, x0, w0, logits), kl),
        (learned.loss(adapted, batch), F.cross_entropy(logits, batch.labels) + image + text + kl),
    ):
        assert wanted > 1e-3
        assert got.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-5)


def test_promptsrc_ends_as_the_gaussian_average_of_its_epochs(tiny, drawn):
    """The weights of 20 epochs are the published Gaussian around 15 of width 1; a run ends at their average."""
    weights = PromptSRC(tiny).epoch_weights(20)
    bell = torch.tensor([math.exp(-((t - 15) ** 2) / 2) for t in range(1, 21)])
    assert torch.allclose(weights, bell / bell.sum(), atol=1e-6)
    seen = []

    class Watched(PromptSRC):
        def after_epoch(self, epoch, epochs):
            seen.append(self.shallow.detach().clone())
            super().after_epoch(epoch, epochs)

    options = {"mean": 0.5, "std": 0.3, "n_prompts": 2}
    learned = Watched(tiny, **options)
    adapted = AdaptedBackbone(tiny, learned)
    config = TuningConfig(epochs=3, batch_size=2, lr=0.05, warm_up_lr=0.0)
    _tune(adapted, drawn, [(0, 0), (1, 1), (2, 2)], NAMES, ["{}"], config, False)
    assert len(seen) == 3
    assert min((a - b).norm() for a, b in itertools.pairwise(seen)) > 1e-4
    expected = sum(w * tensor for w, tensor in zip(learned.epoch_weights(3), seen, strict=True))
    assert torch.allclose(learned.shallow, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: MaPLe(m, depth=3), "1 to 2 blocks"),
        (lambda m: MaPLe(m, n_ctx=5), "1 to 4 words"),
        (lambda m: IVLP(m, vision_depth=7), r"1 to 6 blocks \(vision\)"),
        (lambda m: IVLP(m, n_prompts=0), "one vision prompt or more"),
        (lambda m: PromptSRC(m, std=0.0), "positive width"),
        (lambda m: CoCoOp(m, n_ctx=3), "make them equal"),
        (lambda m: KgCoOp(m, n_ctx=3), "make them equal"),
    ],
)
def test_mistakes_are_explained(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("method", TINY)
def test_methods_learn_a_style_that_the_tiny_clip_never_saw(tiny, method):
    """16 shots of ten classes: .766 before on these 500 scenes, .83 or more after (three standard errors above)."""
    assert accuracy(train(tiny, method, progress=False), few_shot_task(500, TEST)) >= 0.83


def test_the_shipped_maple_is_small_and_as_good_as_its_card_says(tiny):
    """Its 100 scenes are the first of the card's 2,000, so both accuracies lie within 3.5 standard errors of the card's."""
    assert sum(file.stat().st_size for file in MAPLE_FOLDER.iterdir()) < 500_000
    adapted, task = read_adaptation(tiny, MAPLE_FOLDER), few_shot_task(100, TEST)
    card = json.loads((MAPLE_FOLDER / "scores.json").read_text())["ten objects, held-out style, among the ten words"]
    for model, written in ((tiny, card["before"]), (adapted, card["after"])):
        assert accuracy(model, task) == pytest.approx(written, abs=3.5 * (written * (1 - written) / 100) ** 0.5)
    assert card["after"] > card["before"] + 0.05
