"""Published files of prompts: exactly what was written is loaded, and acts as their own code has it."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.adaptation import oracle
from tests.backbones.models import BUILDERS
from vlsae import load_adapted
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.prompts import token_ids
from vlsae.world import scenes

NAMES = ["cat", "red_fire truck"]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def setting(name):
    model = BUILDERS[name]()
    clip = model.model if name == "tiny" else oracle.open_clip_twin(model)
    pixels = model.pixels(scenes(2, seed=3))
    return SimpleNamespace(model=model, clip=clip, pixels=pixels, text=clip.ln_final.weight.shape[0],
                           vision=clip.visual.ln_post.weight.shape[0], state=clip.state_dict(),
                           depth=len(clip.transformer.resblocks))  # fmt: skip


@pytest.fixture(scope="module", params=["tiny", "hf CLIP"])
def at(request):
    return setting(request.param)


@pytest.fixture(scope="module")
def tiny_at():
    return setting("tiny")


def ids(at, context):
    """Token ids of the prompts, with padding to the end for the oracle's mask."""
    return token_ids(at.model.tokenize([f"{context} {name.replace('_', ' ')}." for name in NAMES]))


def written(at, tmp_path, tensors, name="model.pth.tar-5", **more):
    torch.save(
        {"state_dict": tensors, "epoch": 5, "optimizer": {"lr": 1.0}, "scheduler": None, **more}, tmp_path / name
    )
    return tmp_path / name


def frozen(at):
    """The frozen CLIP of a Dassl `CustomCLIP`, in its half precision, beside a base that holds the same."""
    vision = {f"image_encoder.{k.removeprefix('visual.')}": v for k, v in at.state.items() if k.startswith("visual.")}
    rest = ("visual.", "token_embedding", "logit_scale", "attn_mask")
    text = {f"text_encoder.{k}": v for k, v in at.state.items() if not k.startswith(rest)}
    return {k: v.half() for k, v in (vision | text).items()} | {"logit_scale": at.state["logit_scale"]}


def class_bound(at, n, context):
    embedded = at.clip.token_embedding(ids(at, context)).detach()
    return {"token_prefix": embedded[:, :1], "token_suffix": embedded[:, 1 + n :]}


def coop(at, *shape):
    return {"ctx": drawn(1, *shape, at.text), **class_bound(at, shape[-1], " ".join(["X"] * shape[-1]))}


def vpt(at, depth=3, v=2):
    blocks = "image_encoder.transformer.resblocks"
    deep = {f"{blocks}.{i}.VPT_shallow": drawn(10 + i, v, at.vision) for i in range(1, depth)}
    return {"image_encoder.VPT": drawn(2, v, at.vision), **deep}


def maple(at, n=2):
    learned = {"ctx": drawn(3, n, at.text), **linear(4, "proj", at)}
    for i in range(at.depth - 1):
        learned |= {f"compound_prompts_text.{i}": drawn(20 + i, n, at.text)}
        learned |= linear(30 + i, f"compound_prompt_projections.{i}", at)
    return {f"prompt_learner.{k}": v for k, v in {**learned, **class_bound(at, n, "a photo of a")}.items()}


def linear(seed, name, at):
    return {f"{name}.weight": drawn(seed, at.vision, at.text) / 4, f"{name}.bias": drawn(seed + 100, at.vision)}


def cocoop(at, n=4):
    e, hidden = at.clip.text_projection.shape[1], at.clip.text_projection.shape[1] // 16
    net = {"linear1.weight": (hidden, e), "linear1.bias": (hidden,), "linear2.weight": (at.text, hidden),
           "linear2.bias": (at.text,)}  # fmt: skip
    net = {f"meta_net.{name}": drawn(40 + i, *shape) for i, (name, shape) in enumerate(net.items())}
    return {**coop(at, n), **net}


def ivlp(at, n=2, v=3):
    text = {
        f"text_encoder.transformer.resblocks.{i}.VPT_shallow": drawn(50 + i, n, at.text) for i in range(1, at.depth)
    }
    learner = {"ctx": drawn(5, n, at.text), **class_bound(at, n, "a photo of a")}
    return {**vpt(at, 3, v), **text, **{f"prompt_learner.{k}": value for k, value in learner.items()}}


def same_texts(adapted, expected):
    assert torch.allclose(adapted.classifier(NAMES), expected, atol=2e-6)


def same_images(at, adapted, expected):
    assert torch.allclose(adapted.encode_image(at.pixels), expected, atol=2e-6)


def test_the_oracle_is_the_model_without_prompts(at):
    same_texts(at.model, oracle.texts(at.clip, token_ids(at.model.tokenize([f"a photo of a {n}" for n in NAMES]))))
    same_images(at, at.model, oracle.images(at.clip, at.pixels))


def test_coop(at, tmp_path):
    tensors = coop(at, 4)
    path = written(at, tmp_path, {k: v.half() for k, v in tensors.items()}, val_result=torch.tensor(7.0).numpy()[()])
    with pytest.warns(UserWarning, match="position='end'"):
        adapted = load_adapted(at.model, path)
    ctx = tensors["ctx"].half().float()
    assert torch.equal(adapted.adaptation.ctx, ctx)
    same_texts(adapted, oracle.texts(at.clip, ids(at, "X X X X"), ctx))


def test_coop_with_contexts_of_their_own(tiny_at, tmp_path):
    tensors = coop(tiny_at, 2, 4)
    path = written(tiny_at, tmp_path, tensors)
    adapted = load_adapted(tiny_at.model, path, NAMES, position="end")
    same_texts(adapted, oracle.texts(tiny_at.clip, ids(tiny_at, "X X X X"), tensors["ctx"]))
    with pytest.raises(AdaptationError, match="each of 2 classes, but 0 names"):
        load_adapted(tiny_at.model, path, position="end")


def test_vpt(tiny_at, tmp_path):
    tensors = vpt(tiny_at)
    adapted = load_adapted(tiny_at.model, written(tiny_at, tmp_path, {**tensors, **frozen(tiny_at)}))
    shallow, *deep = tensors.values()
    assert torch.equal(adapted.adaptation.shallow, shallow)
    assert all(torch.equal(a, b) for a, b in zip(adapted.adaptation.deep, deep, strict=True))
    same_images(tiny_at, adapted, oracle.images(tiny_at.clip, tiny_at.pixels, shallow, deep))


def test_maple(at, tmp_path):
    tensors = maple(at)
    adapted = load_adapted(at.model, written(at, tmp_path, {**tensors, **frozen(at)}))
    t = {k.removeprefix("prompt_learner."): v for k, v in tensors.items()}
    assert all(torch.equal(value, t[name]) for name, value in adapted.adaptation.state_dict().items())
    same_texts(adapted, oracle.texts(at.clip, ids(at, "a photo of a"), t["ctx"],
                                     [t[f"compound_prompts_text.{i}"] for i in range(at.depth - 1)]))  # fmt: skip
    first, *deep = (
        prompts @ t[f"{name}.weight"].T + t[f"{name}.bias"]
        for prompts, name in [(t["ctx"], "proj"), *((t[f"compound_prompts_text.{i}"], f"compound_prompt_projections.{i}")
                                                    for i in range(at.depth - 1))]
    )  # fmt: skip
    same_images(at, adapted, oracle.images(at.clip, at.pixels, first, deep))


def test_cocoop(tiny_at, tmp_path):
    """Logits of every image by its own context, computed one by one."""
    tensors = cocoop(tiny_at)
    adapted = load_adapted(tiny_at.model, written(tiny_at, tmp_path, tensors))
    x = tiny_at.model.encode_image(tiny_at.pixels)
    hidden = (x @ tensors["meta_net.linear1.weight"].T + tensors["meta_net.linear1.bias"]).clamp(min=0)
    shift = hidden @ tensors["meta_net.linear2.weight"].T + tensors["meta_net.linear2.bias"]
    expected = [image @ oracle.texts(tiny_at.clip, ids(tiny_at, "X X X X"), tensors["ctx"] + by).T
                for image, by in zip(x, shift, strict=True)]  # fmt: skip
    logits = adapted.head(NAMES)(x) / tiny_at.model.logit_scale
    assert torch.allclose(logits, torch.stack(expected), atol=2e-6)


def test_kgcoop_is_coop_with_tensors_that_have_no_effect(tiny_at, tmp_path):
    tensors = coop(tiny_at, 4)
    unused = {"bias_vectors": torch.ones(1, 128), "meta_net.linear1.weight": torch.ones(128, 128),
              "meta_net.linear1.bias": torch.ones(128)}  # fmt: skip
    adapted = load_adapted(tiny_at.model, written(tiny_at, tmp_path, tensors | unused), position="end")
    assert adapted.spec == "tiny+kgcoop"
    same_texts(adapted, oracle.texts(tiny_at.clip, ids(tiny_at, "X X X X"), tensors["ctx"]))


@pytest.mark.parametrize("teacher", [False, True])
def test_ivlp_and_promptsrc(at, tmp_path, teacher):
    tensors, rest = ivlp(at), frozen(at)
    if teacher:
        vision = {k.removeprefix("image_encoder."): v for k, v in rest.items() if k.startswith("image_encoder.")}
        rest |= {f"prompt_learner.ZS_image_encoder.{k}": v for k, v in vision.items()}
    adapted = load_adapted(at.model, written(at, tmp_path, {**tensors, **rest}))
    assert adapted.adaptation.method == ("promptsrc" if teacher else "ivlp")
    ctx, deep = tensors["prompt_learner.ctx"], [v for k, v in tensors.items() if k.startswith("text_encoder.")]
    same_texts(adapted, oracle.texts(at.clip, ids(at, "a photo of a"), ctx, deep))
    shallow, *deep = (v for k, v in tensors.items() if k.startswith("image_encoder."))
    same_images(at, adapted, oracle.images(at.clip, at.pixels, shallow, deep))
    if teacher:
        rest["prompt_learner.ZS_image_encoder.ln_post.bias"] += 1
        with pytest.raises(AdaptationError, match="ZS_image_encoder.ln_post.bias"):
            load_adapted(at.model, written(at, tmp_path, {**tensors, **rest}))


def change(tensors, name, value=None):
    return {k: v for k, v in tensors.items() if k != name} | ({name: value} if value is not None else {})


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (lambda at: coop(at, 4), "ctx", None, r"no known method"),
        (lambda at: coop(at, 4), "ctx", torch.zeros(4, 7), r"ctx \(4, 7\) instead of \(4, 128\)"),
        (lambda at: coop(at, 4), "more", torch.zeros(1), "1 tensors that its method does not know: more"),
        (
            lambda at: coop(at, 4),
            "token_prefix",
            torch.ones(2, 1, 128),
            "another model than tiny: the start token of its token_prefix",
        ),
        (vpt, "image_encoder.VPT", None, "lacks the tensor 'image_encoder.VPT'"),
        (vpt, "image_encoder.transformer.resblocks.1.VPT_shallow", None, r"lacks \[1\]"),
        (vpt, "image_encoder.conv1.weight", None, "lacks the tensor 'image_encoder.conv1.weight'"),
        (vpt, "text_encoder.ln_final.bias", torch.ones(128), "another model than tiny: 1 of"),
        (vpt, "image_encoder.proj", torch.ones(3, 3), "another model than tiny: 1 of"),
        (maple, "prompt_learner.proj.bias", None, r"missing \['proj.bias'\]"),
        (maple, "prompt_learner.compound_prompts_text.0", None, "left over .*projections.0.bias"),
        (cocoop, "meta_net.linear2.bias", None, r"missing \['meta_net.linear2.bias'\]"),
        (cocoop, "meta_net.linear1.weight", torch.zeros(32, 512), r"\(32, 512\) instead of \(12, 192\)"),
        (ivlp, "prompt_learner.ctx", None, "lacks the tensor 'prompt_learner.ctx'"),
        (maple, "prompt_learner.token_suffix", torch.zeros(2, 30, 128), "words 'of a'"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_reason(tiny_at, tmp_path, make, name, value, message):
    tensors = make(tiny_at)
    tensors |= {} if "ctx" in tensors else frozen(tiny_at)
    with pytest.raises(AdaptationError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_adapted(tiny_at.model, written(tiny_at, tmp_path, change(tensors, name, value)))
