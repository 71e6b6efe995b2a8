"""transformers models: CLIP, SigLIP (and SigLIP 2 in SigLIP's format), DINOv2 with and without registers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlsae.backbones.base import Backbone
from vlsae.images.geometry import Geometry

MODEL_TYPES = ("clip", "siglip", "dinov2", "dinov2_with_registers")


class HuggingFaceBackbone(Backbone):
    """A `transformers` vision or vision-language model.

    Args:
        model: `CLIPModel`, `SiglipModel`, `Dinov2Model` or `Dinov2WithRegistersModel`.
        image_processor: the model's own.
        tokenizer: the model's own; None for vision-only models.
        spec: its name for `load_model`.

    Raises:
        ValueError: for another kind of model.
    """

    def __init__(self, model: nn.Module, image_processor, tokenizer=None, spec: str = "hf"):
        kind = model.config.model_type
        if kind not in MODEL_TYPES:
            raise ValueError(f"{spec} is a {kind!r} model; supported are {', '.join(MODEL_TYPES)}.")
        self.model, self.spec, self.kind = model.eval(), spec, kind
        self._processor, self._tokenizer = image_processor, tokenizer
        self.has_text = kind in ("clip", "siglip") and tokenizer is not None
        self.vision = model.vision_model if hasattr(model, "vision_model") else model
        vision = getattr(model.config, "vision_config", model.config)
        self.geometry = _geometry(image_processor, vision.patch_size)
        prefix = {
            "clip": ["cls"],
            "siglip": [],
            "dinov2": ["cls"],
            "dinov2_with_registers": ["cls"] + ["register"] * getattr(vision, "num_register_tokens", 0),
        }[kind]
        self.token_roles = [*prefix, *["patch"] * (self.geometry.rows * self.geometry.columns)]

    def preprocess(self, images) -> Tensor:
        return self._processor(images=list(images), return_tensors="pt")["pixel_values"]

    def tokenize(self, texts) -> dict[str, Tensor]:
        length = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to full length and has no attention mask
        padding = "max_length" if self.kind == "siglip" else True
        encoded = self._tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        wanted = ("input_ids",) if self.kind == "siglip" else ("input_ids", "attention_mask")
        return {k: v.to(self.device) for k, v in encoded.items() if k in wanted}

    def forward_vision(self, pixels: Tensor) -> Tensor:
        pooled = self.vision(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled) if self.kind == "clip" else pooled

    def forward_text(self, tokens: dict[str, Tensor]) -> Tensor:
        pooled = self.model.text_model(**tokens).pooler_output
        return self.model.text_projection(pooled) if self.kind == "clip" else pooled

    def tower(self, name: str) -> nn.Module:
        return self.vision if name == "vision" else self.model.text_model

    def token_embedding(self) -> nn.Embedding:
        return self.model.text_model.embeddings.token_embedding

    def pre_norm(self) -> nn.Module:
        return self.vision.pre_layrnorm if self.kind == "clip" else nn.Identity()

    def readout(self, tokens: Tensor) -> Tensor:
        if self.kind == "clip":
            return self.model.visual_projection(self.vision.post_layernorm(tokens))
        if self.kind == "siglip":
            return self.vision.head(self.vision.post_layernorm(tokens[:, None]))
        return self.vision.layernorm(tokens)

    @property
    def logit_scale(self) -> float:
        scale = getattr(self.model, "logit_scale", None)
        return super().logit_scale if scale is None else float(scale.detach().exp())


def _geometry(processor: Any, patch_size: int) -> Geometry:
    """Read resize and crop from an image processor, whose sizes are dicts or size objects."""

    def get(size: Any, key: str) -> int | None:
        return size.get(key) if hasattr(size, "get") else getattr(size, key, None)

    if getattr(processor, "do_center_crop", False):
        height, width = get(processor.crop_size, "height"), get(processor.crop_size, "width")
        kind, resize = "crop", get(processor.size, "shortest_edge")
    else:
        height, width = get(processor.size, "height"), get(processor.size, "width")
        kind, resize = "squash", None
    if height is None or width is None:
        raise ValueError(
            f"{type(processor).__name__} has no fixed input size (size={processor.size}); "
            "set size={'height': ..., 'width': ...} or a centre crop, so that patches have a place."
        )
    return Geometry(height, width, height // patch_size, width // patch_size, kind, resize)


def load_hugging_face(name: str, device: str | torch.device = "cpu") -> HuggingFaceBackbone:
    """Open a hub id or a local folder."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"hf:{name} is a {config.model_type!r} model; supported are {', '.join(MODEL_TYPES)}.")
    model = AutoModel.from_pretrained(name).to(device)
    tokenizer = AutoTokenizer.from_pretrained(name) if config.model_type in ("clip", "siglip") else None
    return HuggingFaceBackbone(model, AutoImageProcessor.from_pretrained(name), tokenizer, spec=f"hf:{name}")
