"""A model's own MLP as a dictionary: exact for real architectures, and readable where it is planted."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlsae.concepts.naming import name_latents
from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.feed_forward import FeedForwardKV
from vlsae.heatmaps.maps import latent_grids
from vlsae.metrics.matching import aligned_share, max_cosine
from vlsae.metrics.reconstruction import reconstruction
from vlsae.world import scenes
from vlsae.world.captions import concepts
from vlsae.world.clip_data import patch_coverage


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _open_clip(quick):
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    torch.manual_seed(0)
    return ResidualAttentionBlock(16, 2, act_layer=QuickGELU if quick else nn.GELU).mlp


def _hugging_face(kind):
    torch.manual_seed(0)
    if kind == "clip":
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPMLP

        return CLIPMLP(CLIPVisionConfig(hidden_size=16, intermediate_size=40, num_attention_heads=2))
    if kind == "siglip":
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipMLP

        return SiglipMLP(SiglipVisionConfig(hidden_size=16, intermediate_size=40, num_attention_heads=2))
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    return LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=40, num_attention_heads=2))


MODULES = {
    "open_clip gelu": lambda: _open_clip(False),
    "open_clip quick_gelu": lambda: _open_clip(True),
    "Hugging Face CLIP": lambda: _hugging_face("clip"),
    "SigLIP": lambda: _hugging_face("siglip"),
    "LLaMA": lambda: _hugging_face("llama"),
}
X = torch.randn(30, 16, generator=_generator())


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_layer(name, tmp_path):
    """Card 39: `decode(encode(x))` is the module's output, with all codes kept, normalised or not, and from disk."""
    mlp = MODULES[name]()
    sae = FeedForwardKV.from_module(mlp)
    expected = mlp(X)
    assert torch.allclose(sae(X), expected, atol=1e-5)
    whole = FeedForwardKV.from_module(mlp, topk=sae.n_latents)
    assert torch.allclose(whole(X), expected, atol=1e-5)
    assert torch.allclose(load_dictionary(sae.save(tmp_path))(X), expected, atol=1e-5)
    codes = sae.encode(X)
    norms = sae.atoms.norm(dim=1)
    sae.normalise()
    assert torch.allclose(sae.atoms.norm(dim=1), torch.ones(sae.n_latents), atol=1e-5)
    assert torch.allclose(sae(X), expected, atol=1e-5)
    assert torch.allclose(sae.encode(X), codes * norms, atol=1e-5)


def test_activations_are_found_by_what_they_do():
    names = {name: FeedForwardKV.from_module(make()).activation for name, make in MODULES.items()}
    assert names["open_clip gelu"] == "gelu"
    assert names["open_clip quick_gelu"] == names["Hugging Face CLIP"] == "quick_gelu"
    assert names["SigLIP"] == "gelu_tanh"
    assert names["LLaMA"] == "silu"


def test_topk_by_value_and_by_magnitude():
    """GELU goes to -.17: by magnitude the largest of all are kept, by value the largest."""
    mlp = MODULES["open_clip gelu"]()
    full = FeedForwardKV.from_module(mlp).encode(X)
    by_value = FeedForwardKV.from_module(mlp, topk=60).encode(X)
    by_size = FeedForwardKV.from_module(mlp, topk=60, by_magnitude=True).encode(X)
    assert torch.equal((by_value != 0).sum(1), torch.full((30,), 60))
    assert torch.equal(by_size.abs().sort(1).values[:, -60:], full.abs().sort(1).values[:, -60:])
    assert not torch.equal(by_value, by_size)


def test_a_planted_layer_reads_and_writes_its_concepts():
    """Key j looks for concept j, value j writes v_j: latent j fires exactly where concept j is, and writes v_j."""
    concepts = torch.linalg.qr(torch.randn(16, 16, generator=_generator(1)))[0][:10]
    values = torch.randn(10, 16, generator=_generator(2))
    mlp = nn.Module()
    mlp.fc1, mlp.activation_fn, mlp.fc2 = nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 16, bias=False)
    with torch.no_grad():
        mlp.fc1.weight.copy_(concepts)
        mlp.fc1.bias.fill_(-0.5)
        mlp.fc2.weight.copy_(values.T)
    there = torch.rand(200, 10, generator=_generator(3)) < 0.3
    sae = FeedForwardKV.from_module(mlp)
    z = sae.encode(there.float() @ concepts)
    assert torch.equal(z > 0, there)
    best, partner = max_cosine(sae.atoms, values)
    assert torch.equal(partner, torch.arange(10))
    assert best.min() > 0.999


def test_planted_latents_have_the_right_names_and_lie_on_the_right_pixels(tiny):
    """Card 39: on scenes, key j reads concept j and value j writes word j: name(j) = j, and masks match exactly."""
    words = concepts()["object"]
    planted = words[:8]
    mean = tiny.tokens(scenes(16, seed=1), "vision.-1.resid_post")[:, 1:].mean((0, 1))
    jacobian = torch.autograd.functional.jacobian(lambda token: tiny.readout(token[None])[0], mean)
    text = tiny.classifier(planted, ("{}",)).float()
    values = (text - tiny.classifier(words, ("{}",)).float().mean(0)) @ torch.linalg.pinv(jacobian).T
    keys = torch.linalg.qr(torch.randn(192, 8, generator=_generator(4)))[0].T
    mlp = nn.Module()
    mlp.fc1, mlp.activation_fn, mlp.fc2 = nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 192)
    with torch.no_grad():
        mlp.fc1.weight.copy_(keys)
        mlp.fc1.bias.fill_(-0.5)
        mlp.fc2.weight.copy_(torch.nn.functional.normalize(values, dim=1).T)
    sae = FeedForwardKV.from_module(mlp)
    names = name_latents(tiny, sae, words, mean=mean)
    assert [name.word for name in names] == list(planted)

    drawn = scenes(40, seed=9, names=tuple(planted))
    shown = torch.zeros(40, 8, 64)
    for i, scene in enumerate(drawn):
        for obj, share in zip(scene.objects, patch_coverage(scene.masks), strict=True):
            shown[i, planted.index(obj.name)] += torch.from_numpy(share > 0.25)
    shown = shown.clamp(max=1)
    stand_in = SimpleNamespace(
        tokens=lambda images, site: shown.transpose(1, 2) @ keys, token_roles=["patch"] * 64, patch_grid=(8, 8)
    )
    grids = latent_grids(stand_in, sae, drawn, site="planted")
    for i, j in shown.any(2).nonzero().tolist():
        pixels = tiny.geometry.to_image(grids[i, j].numpy(), (64, 64), "nearest") > 0
        mask = shown[i, j].unflatten(0, (8, 8)).repeat_interleave(8, 0).repeat_interleave(8, 1).bool().numpy()
        assert (pixels & mask).sum() == (pixels | mask).sum()


def test_it_explains_its_own_output_completely():
    """EV = 1 by construction, against the layer's output."""
    mlp = MODULES["Hugging Face CLIP"]()
    sae, out = FeedForwardKV.from_module(mlp), mlp(X).detach()
    left = (out - sae(X)).square().sum() / (out - out.mean(0)).square().sum()
    assert left < 1e-9
    assert reconstruction(sae, X)["l0"].value == pytest.approx(40, abs=0.5)


def test_alignment_of_dictionaries():
    """With itself, permuted: 1; with an orthogonal one: 0."""
    A = torch.eye(8)[:4]
    assert aligned_share(A, A[[2, 0, 3, 1]]) == (1.0, 0.0)
    assert aligned_share(A, torch.eye(8)[4:]) == (0.0, 1.0)


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match="Linear has the parts"):
        FeedForwardKV.from_module(nn.Linear(3, 3))
    mlp = nn.Module()
    mlp.fc1, mlp.activation_fn, mlp.fc2 = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)
    with pytest.raises(ValueError, match="is none of gelu"):
        FeedForwardKV.from_module(mlp)
    with pytest.raises(ValueError, match="topk=9 must lie"):
        FeedForwardKV(4, 8, topk=9)
