"""Every kind of backbone at toy size, built from its configuration with random weights."""

from __future__ import annotations

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from vlsae.backbones import load_model
from vlsae.backbones.huggingface import HuggingFaceBackbone
from vlsae.backbones.openclip import OpenClipBackbone
from vlsae.world import tiny_clip

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PREPROCESS = {"size": (64, 64), "resize_mode": "shortest", "interpolation": "bicubic",
              "mean": tiny_clip.MEAN, "std": tiny_clip.STD}  # fmt: skip


def _tokenize(texts):
    return open_clip.get_tokenizer("ViT-B-32")(texts, context_length=16)


def vit(patch_size: int, **vision):
    """A small ViT-B of open_clip: its block layout, 32 wide."""
    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": patch_size, "width": 32, "layers": 3, "head_width": 16, **vision}
    return OpenClipBackbone(CLIP(24, vision, TEXT), _tokenize, f"small ViT/{patch_size}", PREPROCESS)


def timm_siglip(monkeypatch=None):
    """open_clip's SigLIP layout: a timm trunk with attention pooling and no class token."""
    torch.manual_seed(0)
    original = timm.create_model

    def small(name, **options):
        return original(name, embed_dim=32, depth=3, num_heads=2, img_size=64, **options)

    timm.create_model = small
    try:
        vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False, "timm_pool": "map",
                  "timm_proj": "none", "image_size": 64}  # fmt: skip
        text = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        model = CustomTextCLIP(32, vision, text, init_logit_bias=-10)
    finally:
        timm.create_model = original
    return OpenClipBackbone(model, _tokenize, "small timm SigLIP", {**PREPROCESS, "resize_mode": "squash"})


def hf_tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_clip.build_tokenizer(), pad_token="<|pad|>", unk_token="<|unknown|>",
        bos_token="<|startoftext|>", eos_token="<|endoftext|>",
    )  # fmt: skip


def _towers():
    words = len(tiny_clip.lexicon())
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**shared, "vocab_size": words, "max_position_embeddings": 16, "projection_dim": 24, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": words - 1}  # fmt: skip
    return {"text_config": text, "vision_config": {**shared, "image_size": 64, "patch_size": 16, "projection_dim": 24}}


def hf_clip():
    torch.manual_seed(0)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return HuggingFaceBackbone(
        CLIPModel(CLIPConfig(projection_dim=24, **_towers())), processor, hf_tokenizer(), "small HF CLIP"
    )


def hf_siglip():
    torch.manual_seed(0)
    processor = SiglipImageProcessor(size={"height": 64, "width": 64})
    return HuggingFaceBackbone(SiglipModel(SiglipConfig(**_towers())), processor, hf_tokenizer(), "small HF SigLIP")


def _dino(config_class, model_class, **extra):
    torch.manual_seed(0)
    config = config_class(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16, **extra
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    return HuggingFaceBackbone(model_class(config), processor, spec=f"small {config.model_type}")


BUILDERS = {
    "tiny": lambda: load_model("tiny"),
    "open_clip ViT/32": lambda: vit(32),
    "open_clip ViT/16": lambda: vit(16),
    "timm SigLIP": timm_siglip,
    "hf CLIP": hf_clip,
    "hf SigLIP": hf_siglip,
    "hf DINOv2": lambda: _dino(Dinov2Config, Dinov2Model),
    "hf DINOv2 with registers": lambda: _dino(
        Dinov2WithRegistersConfig, Dinov2WithRegistersModel, num_register_tokens=4
    ),
}
