"""open_clip models: native ViTs and timm towers, from a tag, a weight file or a local folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from vlsae.backbones.base import Backbone
from vlsae.images.geometry import Geometry

RESIZE_KINDS = {"shortest": "crop", "squash": "squash", "longest": "pad"}


class OpenClipBackbone(Backbone):
    """Any `open_clip` CLIP whose vision tower is a ViT.

    Args:
        model: from `open_clip.create_model`.
        tokenizer: from `open_clip.get_tokenizer`; None if texts are never needed.
        spec: its name for `load_model`.
        preprocess_cfg: size, mean, std, interpolation, resize_mode; the model's own where None.
    """

    def __init__(self, model: nn.Module, tokenizer=None, spec: str = "open_clip", preprocess_cfg: dict | None = None):
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.model = model.eval()
        self.spec = spec
        self.visual = model.visual
        self.has_text = tokenizer is not None
        self._tokenizer = tokenizer
        cfg = preprocess_cfg or model.visual.preprocess_cfg
        self._transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
        (height, width), (rows, columns) = _pair(self.visual.image_size), self._grid()
        self.geometry = Geometry(height, width, rows, columns, RESIZE_KINDS[cfg["resize_mode"]])
        self.token_roles = [*self._prefix_roles(), *["patch"] * (rows * columns)]

    @property
    def _is_timm(self) -> bool:
        return hasattr(self.visual, "trunk")

    def _grid(self) -> tuple[int, int]:
        if self._is_timm:
            return tuple(self.visual.trunk.patch_embed.grid_size)
        if not hasattr(self.visual, "grid_size"):
            raise ValueError(f"{self.spec} is a {type(self.visual).__name__}; only ViT towers have patch tokens.")
        return tuple(self.visual.grid_size)

    def _prefix_roles(self) -> list[str]:
        if not self._is_timm:
            return ["cls"]
        trunk = self.visual.trunk
        n_cls = int(getattr(trunk, "has_class_token", trunk.num_prefix_tokens > 0))
        return ["cls"] * n_cls + ["register"] * (trunk.num_prefix_tokens - n_cls)

    def preprocess(self, images) -> Tensor:
        return torch.stack([self._transform(image) for image in images])

    def tokenize(self, texts) -> Tensor:
        return self._tokenizer(texts).to(self.device)

    def forward_vision(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def forward_text(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)

    def tower(self, name: str) -> nn.Module:
        if name == "vision":
            return self.visual
        return self.model.text if hasattr(self.model, "text") else self.model.transformer

    def token_embedding(self) -> nn.Embedding:
        return getattr(self.model, "text", self.model).token_embedding

    def pre_norm(self) -> nn.Module:
        return self.visual.trunk.norm_pre if self._is_timm else self.visual.ln_pre

    def readout(self, tokens: Tensor) -> Tensor:
        if self._is_timm:
            trunk = self.visual.trunk
            return self.visual.head(trunk.forward_head(trunk.norm(tokens[:, None])))
        normed = self.visual.ln_post(tokens)
        return normed if self.visual.proj is None else normed @ self.visual.proj

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def sequence_first(self, tower: str) -> bool:
        module = self.tower(tower)
        return not getattr(getattr(module, "transformer", module), "batch_first", True)


def _is_torchscript(file: str) -> bool:
    """Whether a weight file is a TorchScript archive, the form in which OpenAI published its CLIPs."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def load_open_clip(name: str, device: str | torch.device = "cpu") -> OpenClipBackbone:
    """Open `ARCH/TAG` or `ARCH/FILE`, or a folder with `open_clip_config.json`."""
    import open_clip

    if Path(name).is_dir():
        source = f"local-dir:{name}"
        model = open_clip.create_model(source, device=device)
        return OpenClipBackbone(model, open_clip.get_tokenizer(source), spec=str(name))
    arch, _, tag = name.partition("/")
    if arch not in open_clip.list_models():
        raise ValueError(f"open_clip has no architecture {arch!r}; open_clip.list_models() names them.")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag not in tags and not Path(tag).is_file():
        raise ValueError(
            f"open_clip has no weights {tag!r} for {arch}; known tags are {', '.join(tags)}, or give a weight file."
        )
    published = open_clip.get_pretrained_cfg(arch, tag) or {}
    built_in = open_clip.get_model_config(arch) or {}
    # OpenAI's weights were trained with QuickGELU, which the plain architecture names do not have
    wants_quick = published.get("quick_gelu", False) or _is_torchscript(tag)
    quick = bool(wants_quick) and not built_in.get("quick_gelu", False)
    model = open_clip.create_model(arch, pretrained=tag, device=device, force_quick_gelu=quick)
    return OpenClipBackbone(model, open_clip.get_tokenizer(arch), spec=f"open_clip:{name}")
