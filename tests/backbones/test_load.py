"""Models by name, from folders, and honest errors without a network."""

import logging

import open_clip
import pytest
import torch

from tests.backbones import models
from vlsae.backbones import Site, load_model, openclip
from vlsae.world import scenes, tiny_clip


def test_open_clip_and_transformers_folders_agree(tmp_path, tiny):
    """The tiny CLIP saved in transformers' format, with its processor and tokenizer, gives the same embeddings."""
    hf = tiny_clip.to_transformers(tiny.model)
    hf.save_pretrained(tmp_path)
    models.hf_tokenizer().save_pretrained(tmp_path)
    processor = models.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    drawn = scenes(6, seed=1)
    for spec in (str(tmp_path), f"hf:{tmp_path}"):
        other = load_model(spec)
        assert other.patch_grid == tiny.patch_grid
        # images arrive through another preprocessor, whose 8-bit rounding differs
        assert torch.allclose(other.encode_image(drawn), tiny.encode_image(drawn), atol=2e-3)
        assert torch.allclose(other.encode_text(["a red cat"]), tiny.encode_text(["a red cat"]), atol=1e-5)
        site = "vision.-2.resid_post"
        assert torch.allclose(other.tokens(tiny.pixels(drawn), site), tiny.tokens(drawn, site), atol=1e-4)
    assert load_model(str(tiny_clip.FOLDER)).weight_hash == tiny.weight_hash


@pytest.mark.parametrize("kind", ["open_clip ViT/16", "timm SigLIP", "tiny"])
def test_forward_intermediates_and_hooks_agree(kind):
    """open_clip's own way to intermediate features is the oracle."""
    model = models.BUILDERS[kind]()
    pixels = model.pixels(scenes(3, resolution=64))
    with torch.no_grad():
        found = model.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    n_prefix = len(model.token_roles) - model.token_roles.count("patch")
    for block, features in enumerate(found["image_intermediates"]):
        captured = model.tokens(pixels, f"vision.{block}.resid_post")
        assert torch.equal(captured[:, n_prefix:], features)
        if n_prefix:
            assert torch.equal(captured[:, :n_prefix], found["image_intermediates_prefix"][block])


def test_quick_gelu_follows_the_weights(monkeypatch):
    """OpenAI's tags were trained with QuickGELU although the architecture's name does not say so."""
    asked = {}

    def create_model(arch, **options):
        asked[arch, options["pretrained"]] = options["force_quick_gelu"]
        raise RuntimeError("no download here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for name in ("ViT-B-16/openai", "ViT-B-16/laion2b_s34b_b88k", "ViT-B-16-quickgelu/openai"):
        with pytest.raises(OSError, match="no download here"):
            load_model(f"open_clip:{name}")
    assert asked == {
        ("ViT-B-16", "openai"): True,
        ("ViT-B-16", "laion2b_s34b_b88k"): False,
        ("ViT-B-16-quickgelu", "openai"): False,  # the architecture has it already
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_torchscript_files_are_openais(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "jit.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    assert openclip._is_torchscript(str(tmp_path / "jit.pt"))
    assert not openclip._is_torchscript(str(tmp_path / "state.pt"))


def test_without_network_the_error_says_what_to_place(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    logging.disable(logging.CRITICAL)
    try:
        for spec in ("open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:openai/clip-vit-base-patch16"):
            with pytest.raises(OSError, match="neither in the local cache nor to be had from the network.*on disk"):
                load_model(spec)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("small", "Unknown model 'small'; give 'tiny'"),
        ("open_clip:", "Unknown model"),
        ("open_clip:ViT-Z/openai", "no architecture 'ViT-Z'"),
        ("open_clip:ViT-B-32/nope", "no weights 'nope' for ViT-B-32; known tags are openai"),
        ("open_clip:ViT-B-32", "no weights '' for ViT-B-32; known tags are openai"),
    ],
)
def test_unknown_names(spec, message):
    with pytest.raises(ValueError, match=message):
        load_model(spec)


def test_foreign_folders(tmp_path):
    with pytest.raises(ValueError, match="is no model folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model; supported are clip"):
        load_model(tmp_path)


def test_site_names():
    site = Site.parse("vision.-2.resid_post")
    assert str(site) == "vision.-2.resid_post"
    assert str(site.resolve(6)) == "vision.4.resid_post"
    assert str(Site.parse("text.pooled")) == "text.pooled"
    for wrong in ("vision.x.resid_post", "audio.1.resid_post", "vision.1.pooled", "vision.resid_post", "a.b.c.d"):
        with pytest.raises(ValueError, match="such as vision.-2.resid_post"):
            Site.parse(wrong)
