"""Methods that change weights, embeddings or the head: LoRA, adapters, caches, probes and fine-tuning."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from tests.backbones.models import BUILDERS
from vlsae.adaptation.adaptation import TuningBatch
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.checkpoint import read_adaptation
from vlsae.adaptation.lora import SCALINGS, LowRank
from vlsae.adaptation.methods.clip_adapter import CLIPAdapter
from vlsae.adaptation.methods.full import FullFineTuning, weights_behind
from vlsae.adaptation.methods.linear_probe import LinearProbe, logistic_regression
from vlsae.adaptation.methods.lora import LoRAAdaptation
from vlsae.adaptation.methods.tip_adapter import TipAdapter, TipAdapterF
from vlsae.adaptation.tuning import adapt
from vlsae.adaptation.wise_ft import interpolate
from vlsae.world import scenes

TEXTS = ["cat", "red ball"]


@pytest.fixture(scope="module")
def drawn():
    return scenes(4, seed=4)


def randomise(module, std=0.3):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def dense_copy(name, adaptation):
    """The model built again, its weights changed by hand to W + s B A."""
    model = BUILDERS[name]()
    options = adaptation.settings
    s = options["alpha"] / options["rank"] ** 0.5
    with torch.no_grad():
        for tower in ("vision", "text"):
            for i, block in enumerate(model.blocks(tower)):
                attention = getattr(block, "attn", None) or block.self_attn
                linears = [m for m in block.mlp.modules() if isinstance(m, torch.nn.Linear)]
                rows = getattr(attention, "in_proj_weight", None)
                rows = attention.qkv.weight if hasattr(attention, "qkv") else rows
                for j, target in enumerate("qkv"):
                    own = getattr(attention, f"{target}_proj", None)
                    weight = own.weight if own is not None else rows[j * len(rows) // 3 : (j + 1) * len(rows) // 3]
                    update = adaptation.updates[f"{tower}_{i}_{target}"]
                    weight += s * update.B @ update.A
                out = getattr(attention, "out_proj", None) or attention.proj
                for weight, target in ((out.weight, "out"), *((m.weight, f"mlp_{j}") for j, m in enumerate(linears))):
                    update = adaptation.updates[f"{tower}_{i}_{target}"]
                    weight += s * update.B @ update.A
    return model


@pytest.mark.parametrize("name", ["tiny", "open_clip ViT/16", "timm SigLIP", "hf CLIP", "hf SigLIP"])
def test_lora_is_the_identity_at_first_and_then_the_dense_update(name, drawn):
    model = BUILDERS[name]()
    images, texts = model.encode_image(drawn), model.encode_text(TEXTS)
    adaptation = LoRAAdaptation(model, targets=("q", "k", "v", "out", "mlp"), rank=3, alpha=1.5)
    adapted = AdaptedBackbone(model, adaptation)
    assert torch.equal(adapted.encode_image(drawn), images)
    assert torch.equal(adapted.encode_text(TEXTS), texts)
    randomise(adaptation, 0.1)
    dense = dense_copy(name, adaptation)
    assert not torch.allclose(adapted.encode_image(drawn), images, atol=1e-3)
    for changed, expected in ((adapted.encode_image(drawn), dense.encode_image(drawn)),
                              (adapted.encode_text(TEXTS), dense.encode_text(TEXTS))):  # fmt: skip
        assert torch.allclose(changed, expected, atol=1e-6)
    before = adapted.encode_image(drawn)
    adaptation.updates.merge(adapted.base)
    assert not any(hasattr(m, "parametrizations") for m in adapted.base.model.modules())
    assert torch.allclose(adapted.encode_image(drawn), dense.encode_image(drawn), atol=1e-6)
    adaptation.updates.unmerge(adapted.base)
    assert torch.equal(adapted.encode_image(drawn), before)
    assert torch.equal(model.encode_image(drawn), images)
    assert torch.equal(model.encode_text(TEXTS), texts)


def test_scalings_by_hand(tiny):
    """alpha 8, rank 4: a half of it for sqrt(4), a quarter for 4."""
    scales = {s: LowRank(tiny, rank=4, alpha=8.0, scaling=s, blocks=(0,))["vision_0_q"].scale for s in SCALINGS}
    assert scales == {"clip_lora": 4.0, "rslora": 4.0, "peft": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("query",)}, "no target 'query'"),
        ({"scaling": "half"}, "scaling='half' is unknown"),
        ({"rank": 0}, "a rank of 1 or more"),
        ({"blocks": (9,)}, "there is no block 9"),
    ],
)
def test_mistakes_in_lora_are_explained(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        LowRank(tiny, **{"rank": 2, "alpha": 1.0} | change)


def test_lora_in_chosen_places_only(tiny, drawn):
    """Blocks before the first update give what they gave; the text side too."""
    adapted = AdaptedBackbone(tiny, LoRAAdaptation(tiny, targets=("v",), towers=("vision",), blocks=(2, -1)))
    randomise(adapted.adaptation)
    last = len(tiny.blocks("vision")) - 1
    assert sorted(adapted.adaptation.updates) == ["vision_2_v", f"vision_{last}_v"]
    assert adapted.adaptation.changes == ("vision",)
    assert torch.equal(adapted.tokens(drawn, "vision.1.resid_post"), tiny.tokens(drawn, "vision.1.resid_post"))
    assert not torch.equal(adapted.tokens(drawn, "vision.2.attn_out"), tiny.tokens(drawn, "vision.2.attn_out"))
    assert torch.equal(adapted.encode_text(TEXTS), tiny.encode_text(TEXTS))


METHODS = {
    "lora": lambda model: LoRAAdaptation(model, rank=2),
    "clip_adapter": CLIPAdapter,
    "tip_adapter": lambda model: TipAdapter(model, TEXTS, alpha=2.0),
    "tip_adapter_f": lambda model: TipAdapterF(model, TEXTS),
    "linear_probe": lambda model: LinearProbe(model, TEXTS),
    "full": lambda model: FullFineTuning(model, towers=("vision", "text")),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_method_leaves_the_base_alone_and_comes_back_from_its_folder(tiny, drawn, method, tmp_path):
    images, texts, logits = tiny.encode_image(drawn), tiny.encode_text(TEXTS), tiny.zero_shot(drawn, TEXTS)
    options = {"epochs": 1, "lr": 1e-2, "warm_up_lr": 0.0} if method not in ("tip_adapter", "linear_probe") else {}
    adapted = adapt(tiny, drawn, method, labels=[0, 1, 0, 1], class_names=TEXTS, shots=2, progress=False, **options)
    changed = adapted.zero_shot(drawn, TEXTS)
    assert not torch.allclose(changed, logits, atol=1e-4)
    assert torch.equal(tiny.encode_image(drawn), images)
    assert torch.equal(tiny.encode_text(TEXTS), texts)
    assert all(p.requires_grad and p.grad is None for p in tiny.model.parameters())
    again = read_adaptation(tiny, adapted.save(tmp_path / method))
    assert torch.equal(again.zero_shot(drawn, TEXTS), changed)
    if adapted.adaptation.class_names:
        with pytest.raises(ValueError, match="knows no others"):
            adapted.zero_shot(drawn, ["cat", "dog"])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_the_adaptation_alone(tiny, drawn, method):
    adaptation = METHODS[method](tiny)
    adapted, labels = AdaptedBackbone(tiny, adaptation), torch.tensor([0, 1, 0, 1])
    features = tiny.encode_image(drawn)
    if "vision" not in adaptation.changes:
        adaptation.prepare(features, labels)
    if method == "lora":
        randomise(adaptation, 0.1)
    inputs = {"pixels": tiny.pixels(drawn)} if "vision" in adaptation.changes else {"features": features}
    loss = adaptation.loss(adapted, TuningBatch(labels, TEXTS, ["{}"], **inputs))
    own = list(adaptation.parameters())
    if own:
        assert all(g is not None for g in torch.autograd.grad(loss, own, allow_unused=True))
    else:
        assert method in ("tip_adapter", "linear_probe")
    assert not {id(p) for p in own} & {id(p) for p in tiny.model.parameters()}


def test_clip_adapter_by_hand(tiny, drawn):
    plain = tiny.forward_vision(tiny.pixels(drawn))
    adapted = AdaptedBackbone(tiny, CLIPAdapter(tiny, ratio=0.3))
    x, down, up = (t.detach().double().numpy() for t in (plain, adapted.adaptation.down, adapted.adaptation.up))
    assert down.shape == (x.shape[1] // 4, x.shape[1])
    expected = 0.3 * np.maximum(np.maximum(x @ down.T, 0) @ up.T, 0) + 0.7 * x
    assert np.allclose(adapted.forward_vision(tiny.pixels(drawn)).detach(), expected, atol=1e-5)
    # positively homogeneous: trained on unit embeddings, used on embeddings of any length
    assert torch.allclose(adapted.adaptation.image(3 * plain), 3 * adapted.adaptation.image(plain), atol=1e-4)
    off = AdaptedBackbone(tiny, CLIPAdapter(tiny, ratio=0.0))
    assert torch.equal(off.encode_image(drawn), tiny.encode_image(drawn))


def test_tip_adapter_by_a_loop(tiny, drawn):
    x, texts = (t.double().numpy() for t in (tiny.encode_image(drawn), tiny.classifier(TEXTS, ["{}"])))
    labels, alpha, beta = [1, 0, 1, 1], 1.5, 4.0
    adaptation = TipAdapter(tiny, TEXTS, alpha=alpha, beta=beta)
    adapted = AdaptedBackbone(tiny, adaptation)
    empty = adapted.head(TEXTS, ["{}"])(tiny.encode_image(drawn))
    assert torch.equal(empty, tiny.head(TEXTS, ["{}"])(tiny.encode_image(drawn)))
    adaptation.prepare(3 * tiny.encode_image(drawn), torch.tensor(labels))
    logits = adapted.head(TEXTS, ["{}"])(tiny.encode_image(drawn))
    for i in range(len(x)):
        for c in range(2):
            expected = tiny.logit_scale * (x[i] @ texts[c])
            for n, label in enumerate(labels):
                expected += alpha * np.exp(-beta * (1 - x[i] @ x[n])) * (label == c)
            assert abs(expected - float(logits[i, c])) < 1e-4


def test_the_linear_probe_is_that_of_scikit_learn():
    """Both minimise the same convex objective; 1e-4 is what scikit-learn's own stopping leaves."""
    generator = torch.Generator().manual_seed(3)
    x = F.normalize(torch.randn(60, 8, generator=generator), dim=-1)
    y = torch.arange(60) % 3
    for C in (0.3, 30.0):
        weight, bias = logistic_regression(x, y, 3, C)
        oracle = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
        assert np.allclose(weight, oracle.coef_, atol=1e-4 * np.abs(oracle.coef_).max())
        assert np.allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)


def test_probes_want_images_of_every_class(tiny, drawn):
    with pytest.raises(ValueError, match="No training image shows 'ball'"):
        adapt(tiny, drawn, "linear_probe", labels=[0] * 4, class_names=["cat", "ball"], shots=2, progress=False)
    with pytest.raises(ValueError, match="C=0 must be above 0"):
        LinearProbe(tiny, TEXTS, C=0)
    with pytest.raises(ValueError, match="is bound to its classes"):
        TipAdapter(tiny)


@pytest.mark.parametrize("name", ["tiny", "timm SigLIP", "hf CLIP"])
def test_full_fine_tuning_has_every_weight_behind_an_embedding(name, drawn):
    """With all of them at 0 nothing of the image is left, and what the other tower gives stays."""
    model = BUILDERS[name]()
    images, texts = model.encode_image(drawn), model.encode_text(TEXTS)
    adapted = AdaptedBackbone(model, FullFineTuning(model))
    assert torch.equal(adapted.encode_image(drawn), images)
    assert not {id(p) for p in adapted.adaptation.parameters()} & {id(p) for p in model.model.parameters()}
    randomise(adapted.adaptation)
    assert not torch.allclose(adapted.encode_image(drawn), images, atol=0.1)
    assert torch.equal(adapted.encode_text(TEXTS), texts)
    assert torch.equal(model.encode_image(drawn), images)
    tower = {id(p) for p in model.tower("vision").parameters()}
    behind = {id(p) for p in weights_behind(model, ["vision"]).values()}
    assert tower <= behind or name == "timm SigLIP"  # whose trunk keeps a norm that it does not use
    with pytest.raises(ValueError, match="give 'vision', 'text' or both"):
        FullFineTuning(model, towers=("audio",))


def test_weights_between_base_and_fine_tuned(tiny, drawn):
    tuned = AdaptedBackbone(tiny, FullFineTuning(tiny))
    randomise(tuned.adaptation, 0.05)
    for alpha, end in ((0.0, tiny), (1.0, tuned)):
        assert torch.equal(interpolate(tiny, tuned, alpha).encode_image(drawn), end.encode_image(drawn))
    quarter = interpolate(tiny, tuned, 0.25)
    assert quarter.adaptation.settings == {"towers": ["vision"], "alpha": 0.25}
    named = dict(tiny.model.named_parameters())
    for key, theta in quarter.adaptation.weights.items():
        by_hand = 0.75 * named[key.replace("/", ".")] + 0.25 * tuned.adaptation.weights[key]
        assert torch.allclose(theta, by_hand, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="must be from 0"):
        interpolate(tiny, tuned, 1.5)
    with pytest.raises(ValueError, match="only weights of method 'full'"):
        interpolate(tiny, AdaptedBackbone(tiny, CLIPAdapter(tiny)), 0.5)
    with pytest.raises(ValueError, match="tuned from other weights"):
        interpolate(BUILDERS["open_clip ViT/16"](), tuned, 0.5)
