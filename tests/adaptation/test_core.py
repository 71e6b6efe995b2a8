"""The parts that every adaptation shares: copies, prompts, heads, few-shot samples, files."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.models import BUILDERS
from vlsae.adaptation.adapted import AdaptedBackbone, shared_copy
from vlsae.adaptation.checkpoint import AdaptationError, read_adaptation
from vlsae.adaptation.few_shot import base_and_new, few_shot
from vlsae.adaptation.methods.coop import CoOp
from vlsae.adaptation.methods.vpt import VPT
from vlsae.adaptation.prompts import PromptedTexts, token_ids, vision_prompts, width
from vlsae.adaptation.tuning import adapt
from vlsae.world import scenes

CLIPS = ["tiny", "open_clip ViT/16", "timm SigLIP", "hf CLIP", "hf SigLIP"]


@pytest.fixture(scope="module", params=CLIPS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture(scope="module")
def drawn():
    return scenes(3, seed=4)


def test_a_shared_copy_has_the_same_tensors_and_modules_of_its_own(model, drawn):
    twin = shared_copy(model)
    assert {id(p) for p in twin.model.parameters()} == {id(p) for p in model.model.parameters()}
    with twin.edit("vision.-1.resid_post", torch.zeros_like):
        assert torch.equal(model.encode_image(drawn), shared_copy(model).encode_image(drawn))
        assert not torch.equal(twin.encode_image(drawn), model.encode_image(drawn))


@pytest.mark.parametrize("position", ["end", "front", "middle"])
def test_contexts_of_the_words_own_embeddings_change_nothing(model, position):
    """Putting back what stood there is the identity, wherever the class name stands."""
    names = ["cat", "red_fire truck"]
    texts = PromptedTexts(model, names, 3, "a photo of", position)
    written = {"end": "a photo of {}.", "front": "{} a photo of.", "middle": "a {} photo of."}[position]
    plain = model.encode_text([written.format(name.replace("_", " ")) for name in names])
    ids = token_ids(texts.tokens)
    words = model.token_embedding()(ids.gather(1, texts.positions))
    assert torch.allclose(texts.encode(model, words), plain, atol=1e-6)
    assert torch.allclose(texts.encode(model, texts.word_vectors(model)), plain, atol=1e-6)
    assert torch.allclose(texts.encode_each(model, words[:1])[0], plain, atol=1e-6)


def test_fewer_vectors_than_words_leave_the_last_words(model):
    """MaPLe's layout: two vectors take the first two of the four places of "a photo of a"."""
    texts = PromptedTexts(model, ["cat"], 2, "a photo of a")
    row, full = texts.positions[0], PromptedTexts(model, ["cat"], 4, "a photo of a").positions[0]
    assert row.tolist() == full[:2].tolist() == [int(full[0]), int(full[0]) + 1]


def test_deep_contexts_replace_what_the_blocks_see(model):
    texts = PromptedTexts(model, ["cat", "dog"], 2)
    deep = torch.randn(2, width(model, "text"))
    with model.capture("text.1.resid_pre") as found:
        texts.encode(model, torch.zeros(2, width(model, "text")))
    plain = found["text.1.resid_pre"]
    with torch.no_grad():
        seen = []
        block = model.blocks("text")[1]
        handle = block.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
        )
        texts.encode(model, torch.zeros(2, width(model, "text")), [deep])
        handle.remove()
    got = seen[0].transpose(0, 1) if model.sequence_first("text") else seen[0]
    places = texts.positions[0]
    assert torch.allclose(got[:, places], deep.expand(2, -1, -1))
    rest = [i for i in range(got.shape[1]) if i not in places.tolist()]
    assert torch.allclose(got[:, rest], plain[:, rest], atol=1e-6)


def test_vision_prompts_stand_at_the_end_of_every_block_and_users_see_them(model, drawn):
    adapted = AdaptedBackbone(model, VPT(model, n_prompts=2, depth=2))
    n = len(model.token_roles)
    assert adapted.token_roles == [*model.token_roles, "prompt", "prompt"]
    sites = [f"vision.{i}.{stream}" for i in (0, 1, -1) for stream in ("resid_pre", "resid_post")]
    found = adapted.tokens_at(drawn, sites)
    assert {tuple(tokens.shape[:2]) for tokens in found.values()} == {(3, n + 2)}
    assert torch.equal(found["vision.0.resid_pre"][:, :n], model.tokens(drawn, "vision.0.resid_pre"))
    shallow, deep = adapted.adaptation.shallow, adapted.adaptation.deep[0]
    assert torch.allclose(found["vision.0.resid_pre"][:, n:], model.pre_norm()(shallow).expand(3, -1, -1), atol=1e-6)
    assert torch.allclose(found["vision.1.resid_pre"][:, n:], deep.expand(3, -1, -1), atol=1e-6)
    assert model.tokens(drawn, "vision.-1.resid_post").shape[1] == n


def test_prompts_that_nothing_attends_to_change_nothing(tiny, drawn):
    """Keys far below all others get no attention: the other tokens are as without prompts."""
    block = tiny.blocks("vision")[0]
    x = tiny.tokens(drawn, "vision.0.resid_pre")
    with torch.no_grad():
        mask = torch.zeros(x.shape[1] + 2, x.shape[1] + 2)
        mask[:, -2:] = -1e9
        longer = torch.cat([x, torch.randn(3, 2, x.shape[2])], 1)
        assert torch.allclose(block(longer, attn_mask=mask)[:, :-2], block(x), atol=1e-5)
    with vision_prompts(tiny, torch.randn(2, x.shape[2])):
        prompted = tiny.encode_image(drawn)
    assert not torch.allclose(prompted, tiny.encode_image(drawn), atol=1e-3)


def test_an_adaptation_comes_back_from_its_folder(tiny, drawn, tmp_path):
    adapted = AdaptedBackbone(tiny, VPT(tiny, n_prompts=2, depth=3, seed=1))
    again = read_adaptation(tiny, adapted.save(tmp_path / "vpt"))
    assert torch.equal(again.encode_image(drawn), adapted.encode_image(drawn))
    other = BUILDERS["open_clip ViT/16"]()
    with pytest.raises(AdaptationError, match="was made for tiny"):
        read_adaptation(other, tmp_path / "vpt")
    facts = json.loads((tmp_path / "vpt" / "adaptation.json").read_text())
    facts["settings"]["depth"] = 2
    (tmp_path / "vpt" / "adaptation.json").write_text(json.dumps(facts))
    with pytest.raises(AdaptationError, match=r"left over \['deep.1'\]"):
        read_adaptation(tiny, tmp_path / "vpt")
    (tmp_path / "vpt" / "adaptation.safetensors").write_bytes(b"123")
    with pytest.raises(AdaptationError, match="does not hold a whole adaptation"):
        read_adaptation(tiny, tmp_path / "vpt")


def test_tuning_learns_and_leaves_the_base_alone(tiny):
    """Names are swapped, so that only what is learned can be right; the frozen model keeps weights and gradients."""
    drawn = scenes(40, seed=1, n_objects=(1, 0, 0, 0), names=("cat", "ball"))
    labels = [int(scene.objects[0].name == "cat") for scene in drawn]
    names, before = ["cat", "ball"], tiny.weight_hash
    adapted = adapt(tiny, drawn, "coop", labels=labels, class_names=names, shots=8, n_ctx=4, class_specific=True,
                    lr=0.1, epochs=14, warm_up_lr=0.0, progress=False)  # fmt: skip
    right = (adapted.zero_shot(drawn, names).argmax(1) == torch.tensor(labels)).float().mean()
    assert (tiny.zero_shot(drawn, names).argmax(1) == torch.tensor(labels)).float().mean() <= 0.1
    assert right >= 0.9
    del tiny.__dict__["weight_hash"]
    assert tiny.weight_hash == before
    assert all(p.requires_grad and p.grad is None for p in tiny.model.parameters())
    with pytest.raises(ValueError, match="knows no others"):
        adapted.zero_shot(drawn[:1], ["cat", "dog"])


def test_a_model_that_computes_in_another_precision_is_refused(tiny):
    from vlsae import load_model

    with pytest.raises(ValueError, match="adapt it in float32"):
        shared_copy(load_model("tiny", precision="bfloat16"))


def test_few_shot_samples():
    labels = [2, 0, 1, 0, 2, 1, 0, -1]
    chosen = few_shot(labels, 2, seed=3)
    assert [labels[i] for i in chosen] == [0, 0, 1, 1, 2, 2]
    assert chosen == few_shot(labels, 2, seed=3)
    assert sorted(few_shot(labels, 0)) == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="class 2 has 2 images"):
        few_shot(labels, 3)
    with pytest.raises(ValueError, match="No image has a class"):
        few_shot([-1, -1], 1)
    assert base_and_new(4) == ([0, 1], [2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nothing"}, "Unknown adaptation method"),
        ({"n_contexts": 2}, "no such option"),
        ({"optimizer": "adagrad"}, "use 'sgd' or 'adamw'"),
        ({"labels": [0]}, "one label an image"),
        ({"class_names": []}, "No class names"),
        ({"labels": [0, 1, 2]}, "Label 2 has no name"),
        ({"shots": 5}, "has 1 images"),
        ({"n_ctx": 60}, "do not fit"),
    ],
)
def test_mistakes_are_explained(tiny, drawn, change, message):
    options = {"method": "coop", "labels": [0, 1, -1], "class_names": ["cat", "dog"], "shots": 1, "epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        adapt(tiny, drawn, options.pop("method"), progress=False, **options)


def test_heads_of_zero_shot_are_cosines(tiny, drawn):
    head = tiny.head(["cat", "dog"])
    x = tiny.encode_image(drawn)
    assert torch.allclose(head(x), tiny.logit_scale * x @ tiny.classifier(["cat", "dog"]).T, atol=1e-5)
    coop = AdaptedBackbone(tiny, CoOp(tiny, n_ctx=4))
    assert torch.allclose(coop.head(["cat", "dog"]).weight, coop.classifier(["cat", "dog"]), atol=1e-6)
    assert torch.equal(coop.encode_image(drawn), x)
    assert torch.allclose(F.normalize(coop.classifier(["cat"]), dim=-1), coop.classifier(["cat"]), atol=1e-6)
