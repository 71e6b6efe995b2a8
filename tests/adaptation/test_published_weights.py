"""Published files that change weights or heads: low-rank updates, whole models, caches, adapters."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.adaptation import oracle
from tests.backbones.models import BUILDERS
from vlsae import load_adapted
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.prompts import token_ids
from vlsae.world import scenes

TEXTS = ["a photo of a cat", "a red fire truck"]
PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 4


@pytest.fixture(scope="module", params=["tiny", "hf CLIP"])
def at(request):
    """A model, and a fresh open_clip model with its weights to change by hand."""
    model = BUILDERS[request.param]()

    def clip():
        return BUILDERS["tiny"]().model if request.param == "tiny" else oracle.open_clip_twin(model)

    return SimpleNamespace(model=model, clip=clip, pixels=model.pixels(scenes(2, seed=3)),
                           ids=token_ids(model.tokenize(TEXTS)))  # fmt: skip


def blocks(clip, encoder="both"):
    """(tower, number, block): text first, then vision, as the published code numbers them."""
    towers = {"text": clip.transformer, "vision": clip.visual.transformer}
    return [(t, i, block) for t in towers if encoder in (t, "both") for i, block in enumerate(towers[t].resblocks)]


@torch.no_grad()
def add(block, part, delta):
    """Add to the weight of q, k, v, the output or a layer of the MLP."""
    weights = {"o": block.attn.out_proj.weight, "fc1": block.mlp.c_fc.weight, "fc2": block.mlp.c_proj.weight}
    width = block.attn.out_proj.weight.shape[0]
    weights |= {p: block.attn.in_proj_weight[i * width : (i + 1) * width] for i, p in enumerate("qkv")}
    weights[part].add_(delta)


def pair(block, part, rank, seed):
    d, hidden = block.attn.out_proj.weight.shape[0], block.mlp.c_fc.weight.shape[0]
    rows, columns = {"fc1": (hidden, d), "fc2": (d, hidden)}.get(part, (d, d))
    return drawn(seed, rank, columns), drawn(seed + 500, rows, rank)


def clip_lora(clip, params=("q", "k", "v", "o"), encoder="both", rank=2, alpha=3, layers=None):
    """A CLIP-LoRA file for `clip`, whose weights are changed to what it means: W + alpha / sqrt(r) B A."""
    weights = {}
    for i, (_, _, block) in enumerate(b for b in blocks(clip, encoder) if layers is None or b[1] in layers):
        weights[f"layer_{i}"] = {}
        for j, p in enumerate(params):
            a, b = pair(block, p, rank, 10 * i + j)
            weights[f"layer_{i}"][PARTS[p]] = {"w_lora_A": a, "w_lora_B": b}
            add(block, p, alpha / rank**0.5 * b @ a)
    position = "all" if layers is None else "bottom"
    return {"weights": weights, "metadata": {"r": rank, "alpha": alpha, "encoder": encoder, "params": list(params),
                                             "position": position}}  # fmt: skip


def same(at, adapted, clip):
    assert torch.allclose(adapted.encode_text(TEXTS), oracle.texts(clip, at.ids), atol=5e-6)
    assert torch.allclose(adapted.encode_image(at.pixels), oracle.images(clip, at.pixels), atol=5e-6)
    assert (adapted.encode_image(at.pixels) - at.model.encode_image(at.pixels)).abs().max() > 1e-2


@pytest.mark.parametrize("params", ["qkvo", "qv"])
def test_clip_lora(at, tmp_path, params):
    clip = at.clip()
    held = clip_lora(clip, params)
    torch.save(held, tmp_path / "lora_weights.pt")
    adapted = load_adapted(at.model, tmp_path / "lora_weights.pt")
    same(at, adapted, clip)
    last = len(clip.transformer.resblocks)  # the first layer of the vision tower
    tensors = adapted.adaptation.state_dict()
    assert torch.equal(tensors["updates.vision_0_q.A"], held["weights"][f"layer_{last}"]["q_proj"]["w_lora_A"])
    assert torch.equal(tensors["updates.text_0_v.B"], held["weights"]["layer_0"]["v_proj"]["w_lora_B"])


def test_clip_lora_in_other_blocks_of_one_tower(tiny, tmp_path):
    clip = BUILDERS["tiny"]().model
    torch.save(clip_lora(clip, encoder="vision", layers=range(4)), tmp_path / "lora.pt")
    adapted = load_adapted(tiny, tmp_path / "lora.pt")
    pixels = tiny.pixels(scenes(2, seed=3))
    assert torch.allclose(adapted.encode_image(pixels), oracle.images(clip, pixels), atol=5e-6)
    assert torch.equal(adapted.encode_text(TEXTS), tiny.encode_text(TEXTS))


def _lacks(held, layer, name=None, half=None):
    place = held["weights"]
    for key in [key for key in (layer, name, half) if key][:-1]:
        place = place[key]
    del place[half or name or layer]
    return held


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda h: _lacks(h, "layer_7"), "updates of 7 layers, .* mean 8 blocks of tiny"),
        (lambda h: _lacks(h, "layer_3", "q_proj"), "lacks the updates of layer_3 q"),
        (lambda h: _lacks(h, "layer_3", "q_proj", "w_lora_B"), "lacks the tensor 'weights.layer_3.q_proj.w_lora_B'"),
        (lambda h: {**h, "weights": {**h["weights"], "layer_0": h["weights"]["layer_5"]}}, "of other shapes"),
        (lambda h: {**h, "weights": {**h["weights"], "more": torch.ones(1)}}, "does not know: weights.more"),
        (lambda h: {**h, "metadata": {**h["metadata"], "encoder": "audio"}}, "encoder='audio'"),
    ],
)
def test_files_of_clip_lora_that_do_not_fit(tiny, tmp_path, break_it, message):
    torch.save(break_it(clip_lora(BUILDERS["tiny"]().model, "qv")), tmp_path / "lora.pt")
    with pytest.raises(AdaptationError, match=message):
        load_adapted(tiny, tmp_path / "lora.pt")


HF_PARTS = {
    "q": "self_attn.q_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def peft(folder, clip, parts=("q", "v", "o", "fc1"), encoder="both", rank=4, alpha=8, prefix=True, **config):
    """A PEFT folder for `clip`, whose weights are changed to what it means: W + s B A."""
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    tensors = {}
    for tower, i, block in blocks(clip, encoder):
        for j, part in enumerate(parts):
            a, b = pair(block, part, rank, 1000 + 100 * (tower == "vision") + 10 * i + j)
            name = f"{f'{tower}_model.' if prefix else ''}encoder.layers.{i}.{HF_PARTS[part]}"
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            add(block, part, scale * b @ a)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "init_lora_weights": True,
              "target_modules": [HF_PARTS[part].split(".")[1] for part in parts], **config}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize("rslora", [False, True])
def test_peft(at, tmp_path, rslora):
    clip = at.clip()
    peft(tmp_path / "adapter", clip, use_rslora=rslora)
    same(at, load_adapted(at.model, tmp_path / "adapter"), clip)


@pytest.mark.parametrize("prefix", [True, False])
def test_peft_of_a_vision_tower_alone_by_either_version_of_transformers(at, tmp_path, prefix):
    clip = at.clip()
    said = {"auto_mapping": {"base_model_class": "CLIPVisionModel"}}
    peft(tmp_path / "adapter", clip, encoder="vision", prefix=prefix, **said)
    adapted = load_adapted(at.model, tmp_path / "adapter")
    assert torch.allclose(adapted.encode_image(at.pixels), oracle.images(clip, at.pixels), atol=5e-6)
    assert torch.equal(adapted.encode_text(TEXTS), at.model.encode_text(TEXTS))


@pytest.mark.parametrize(
    ("config", "lost", "added", "message"),
    [
        ({"use_dora": True}, None, None, "configured with {'use_dora': True}"),
        ({"peft_type": "IA3"}, None, None, "'peft_type': 'IA3'"),
        ({"init_lora_weights": "pissa"}, None, None, "'init_lora_weights': 'pissa'"),
        ({"r": 8}, None, None, r"ranks \[4\], but its configuration says r=8"),
        ({}, "vision_model.encoder.layers.2.mlp.fc1.lora_B", None, "lacks the tensor .*fc1.lora_B"),
        (
            {},
            "vision_model.encoder.layers.2.mlp.fc1.lora_",
            None,
            "lacks the updates of vision_model.encoder.layers.2.mlp.fc1",
        ),
        (
            {},
            None,
            "visual_projection.lora_A.weight",
            "does not know: base_model.model.visual_projection.lora_A.weight",
        ),
        ({}, None, "vision_model.encoder.layers.0.mlp.gate.lora_A.weight", "does not know: .*mlp.gate"),
        ({"layers_to_transform": [9]}, None, None, "lacks the updates of text_model.encoder.layers.9"),
    ],
)
def test_folders_of_peft_that_do_not_fit(tiny, tmp_path, config, lost, added, message):
    tensors = peft(tmp_path / "adapter", BUILDERS["tiny"]().model, **config)
    tensors = {k: v for k, v in tensors.items() if lost is None or lost not in k}
    tensors |= {f"base_model.model.{added}": torch.ones(4, 4)} if added else {}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AdaptationError, match=message):
        load_adapted(tiny, tmp_path / "adapter")
    with pytest.raises(AdaptationError, match="give the folder"):
        load_adapted(tiny, tmp_path / "adapter" / "adapter_model.safetensors")


def test_a_damaged_configuration(tiny, tmp_path):
    peft(tmp_path / "adapter", BUILDERS["tiny"]().model)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": ')
    with pytest.raises(AdaptationError, match="no whole JSON file"):
        load_adapted(tiny, tmp_path / "adapter")


@pytest.mark.parametrize("regex", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_peft_itself_agrees(tmp_path, alone, regex):
    """The library writes the folder of a whole CLIP or of its vision tower, and computes the same."""
    peft = pytest.importorskip("peft")
    model = BUILDERS["hf CLIP"]()
    pixels = model.pixels(scenes(2, seed=3))
    targets = r".*self_attn\.(q_proj|v_proj)" if regex else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, use_rslora=regex)
    torch.manual_seed(0)
    other = BUILDERS["hf CLIP"]()
    theirs = peft.get_peft_model(other.model.vision_model if alone else other.model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    adapted = load_adapted(model, tmp_path / "adapter")
    with torch.no_grad():
        pooled = theirs(pixel_values=pixels).pooler_output if alone else other.model.vision_model(pixels).pooler_output
        expected = torch.nn.functional.normalize(model.model.visual_projection(pooled), dim=-1)
    assert torch.allclose(adapted.encode_image(pixels), expected, atol=1e-6)
    assert (expected - model.encode_image(pixels)).abs().max() > 1e-2
    assert torch.equal(adapted.encode_text(TEXTS), model.encode_text(TEXTS)) == alone


def tuned(model):
    """The state of a model that fine-tuning has changed."""
    changes = torch.Generator().manual_seed(7)
    state = {k: v.detach().clone() for k, v in model.model.state_dict().items()}
    return {
        k: v if k.startswith("logit") else v + 0.05 * torch.randn(v.shape, generator=changes) for k, v in state.items()
    }


def hugging_face(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def in_two_parts(folder, tensors):
    """As transformers writes models that are too large for one file."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names, parts = list(tensors), {}
    for i in range(2):
        part = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({k: tensors[k].contiguous() for k in names[i::2]}, folder / part)
        parts |= dict.fromkeys(names[i::2], part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return folder


def loaded_by_the_library(name, state):
    other = BUILDERS[name]()
    other.model.load_state_dict(state)
    return other


def same_embeddings(a, b, pixels):
    assert torch.equal(a.encode_image(pixels), b.encode_image(pixels))
    assert torch.equal(a.encode_text(TEXTS), b.encode_text(TEXTS))


@pytest.mark.parametrize("name", ["open_clip ViT/16", "timm SigLIP"])
def test_an_epoch_of_open_clip(name, tmp_path):
    model = BUILDERS[name]()
    state, before = tuned(model), model.weight_hash
    state["logit_scale"] = state["logit_scale"] + 1
    torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()},
                "optimizer": {"param_groups": []}}, tmp_path / "epoch_3.pt")  # fmt: skip
    with pytest.warns(UserWarning, match="logit_scale=.* is not used"):
        adapted = load_adapted(model, tmp_path / "epoch_3.pt")
    same_embeddings(adapted, loaded_by_the_library(name, state), model.pixels(scenes(2, seed=3)))
    del model.__dict__["weight_hash"]
    assert model.weight_hash == before


def test_folders_of_transformers(tmp_path):
    model = BUILDERS["hf CLIP"]()
    state, pixels = tuned(model), model.pixels(scenes(2, seed=3))
    whole = load_adapted(model, hugging_face(tmp_path / "whole", state))
    expected = loaded_by_the_library("hf CLIP", state)
    same_embeddings(whole, expected, pixels)
    same_embeddings(load_adapted(model, in_two_parts(tmp_path / "parts", state)), expected, pixels)
    vision = {k: v for k, v in state.items() if k.startswith("vision_model.")}
    projected = load_adapted(
        model, hugging_face(tmp_path / "projected", vision | {k: v for k, v in state.items() if "visual_p" in k})
    )
    assert torch.equal(projected.encode_image(pixels), expected.encode_image(pixels))
    assert torch.equal(projected.encode_text(TEXTS), model.encode_text(TEXTS))
    alone = [hugging_face(tmp_path / "version 4", {**vision, "vision_model.embeddings.position_ids": torch.arange(17)[None]}),
             hugging_face(tmp_path / "version 5", {k.removeprefix("vision_model."): v for k, v in vision.items()})]  # fmt: skip
    kept = loaded_by_the_library(
        "hf CLIP", {**state, "visual_projection.weight": model.model.visual_projection.weight.detach()}
    )
    for folder in alone:
        with pytest.warns(UserWarning, match="without a projection"):
            adapted = load_adapted(model, folder)
        assert torch.equal(adapted.encode_image(pixels), kept.encode_image(pixels))


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        ("open_clip ViT/16", {"visual.ln_post.bias": None}, "lacks the tensor 'visual.ln_post.bias'"),
        ("open_clip ViT/16", {"visual.head.weight": torch.ones(1)}, "does not know: visual.head.weight"),
        ("open_clip ViT/16", {"visual.proj": torch.ones(32, 7)}, r"visual/proj \(32, 7\) instead of \(32, 24\)"),
        ("hf CLIP", {}, "names of open_clip, but small HF CLIP"),
    ],
)
def test_whole_models_that_do_not_fit(tmp_path, base, change, message):
    state = tuned(BUILDERS["open_clip ViT/16"]()) | change
    torch.save({"state_dict": {k: v for k, v in state.items() if v is not None}}, tmp_path / "epoch_1.pt")
    with pytest.raises(AdaptationError, match=message):
        load_adapted(BUILDERS[base](), tmp_path / "epoch_1.pt")


def test_a_folder_of_transformers_on_another_library(tiny, tmp_path):
    folder = hugging_face(tmp_path / "hf", BUILDERS["hf CLIP"]().model.state_dict())
    with pytest.raises(AdaptationError, match="names of transformers, but tiny"):
        load_adapted(tiny, folder)


def test_clip_adapter(tiny, tmp_path):
    down, up = drawn(1, 48, 192), drawn(2, 192, 48)
    torch.save({"state_dict": {"fc.0.weight": down, "fc.2.weight": up}, "epoch": 200}, tmp_path / "model.pth.tar-200")
    with pytest.warns(UserWarning, match="ratio=0.2"):
        adapted = load_adapted(tiny, tmp_path / "model.pth.tar-200")
    x = tiny.encode_image(scenes(2, seed=3))
    expected = 0.2 * (((x @ down.T).clamp(min=0)) @ up.T).clamp(min=0) + 0.8 * x
    assert torch.allclose(
        adapted.encode_image(scenes(2, seed=3)), expected / expected.norm(dim=-1, keepdim=True), atol=1e-6
    )
    other = load_adapted(tiny, tmp_path / "model.pth.tar-200", ratio=0.5)
    assert other.adaptation.settings["ratio"] == 0.5
    torch.save({"fc.0.weight": down}, tmp_path / "model.pth.tar-200")
    with pytest.raises(AdaptationError, match="lacks the tensor 'fc.2.weight'"):
        load_adapted(tiny, tmp_path / "model.pth.tar-200", ratio=0.5)


@pytest.fixture
def cache(tmp_path):
    labels = torch.tensor([0, 0, 1, 1])
    keys = torch.nn.functional.normalize(drawn(1, 4, 192), dim=-1)
    torch.save(keys.T.contiguous(), tmp_path / "keys_2shots.pt")
    torch.save(torch.nn.functional.one_hot(labels).half(), tmp_path / "values_2shots.pt")
    return tmp_path, keys, torch.nn.functional.one_hot(labels).float()


def test_tip_adapter(tiny, cache):
    folder, keys, values = cache
    names, x = ["cat", "dog"], tiny.encode_image(scenes(3, seed=3))
    with pytest.warns(UserWarning, match=r"alpha=1.0|beta=5.5"):
        adapted = load_adapted(tiny, folder, names)
    zero_shot = tiny.logit_scale * x @ tiny.classifier(names).T
    logits = adapted.head(names)(x)
    assert torch.allclose(logits, zero_shot + torch.exp(5.5 * (x @ keys.T - 1)) @ values, atol=1e-4)
    trained = drawn(5, 4, 192)
    torch.save(torch.nn.Parameter(trained), folder / "best_F_2shots.pt")
    adapted = load_adapted(tiny, folder, names, alpha=3.0, beta=2.0, tuned=True)
    assert adapted.adaptation.method == "tip_adapter_f"
    expected = zero_shot + 3 * torch.exp(2 * (x @ trained.T - 1)) @ values
    assert torch.allclose(adapted.head(names)(x), expected, rtol=1e-5, atol=1e-4)
    assert load_adapted(tiny, folder, names, alpha=3.0, beta=2.0, tuned=False).adaptation.method == "tip_adapter"


def test_caches_that_do_not_fit(tiny, cache):
    folder, keys, _ = cache
    given = {"class_names": ["cat", "dog"], "alpha": 1.0, "beta": 1.0}
    with pytest.raises(AdaptationError, match="cache of 2 classes, but 1 names"):
        load_adapted(tiny, folder, **{**given, "class_names": ["cat"]})
    with pytest.raises(AdaptationError, match="lacks the tensor 'best_F_2shots'"):
        load_adapted(tiny, folder, tuned=True, **given)
    torch.save(keys[:3].T.contiguous(), folder / "keys_2shots.pt")
    with pytest.raises(AdaptationError, match=r"keys \(3, 192\) instead of \(4, 192\)"):
        load_adapted(tiny, folder, **given)
    torch.save(keys.T.contiguous(), folder / "keys_4shots.pt")
    with pytest.raises(AdaptationError, match=r"caches of \[2, 4\] shots"):
        load_adapted(tiny, folder, **given)
    with pytest.raises(AdaptationError, match="lacks the tensor 'values_4shots'"):
        load_adapted(tiny, folder, shots=4, **given)
