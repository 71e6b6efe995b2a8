"""A CLIP with an adaptation, behind the protocol of every other model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.adaptation.adaptation import Adaptation
from vlsae.backbones.base import DEFAULT_TEMPLATES, Backbone
from vlsae.backbones.head import Head, LinearHead


def shared_copy(base: Backbone) -> Backbone:
    """A second model with modules of its own that share the base's tensors: hooks and replaced weights stay apart."""
    if base.precision != "float32":
        raise ValueError(f"{base.spec} computes in {base.precision}; adapt it in float32 and set the precision after.")
    shared = [*base.model.parameters(), *base.model.buffers()]
    shared += [part for part in (getattr(base, "_tokenizer", None),) if part is not None]
    twin = copy.deepcopy(base, {id(part): part for part in shared})
    twin.__dict__.pop("weight_hash", None)
    return twin


class AdaptedBackbone(Backbone):
    """A model and what was learned on top of it; the base model stays as it is and shares its tensors.

    Tokens of prompts stand at the end, with the role "prompt", from the first block on. `encode_text` embeds plain
    texts, without learned contexts; `head` and `zero_shot` use them.

    Args:
        base: the frozen model.
        adaptation: the learned parts, made for this model.

    Raises:
        ValueError: for a base that does not compute in float32.
    """

    def __init__(self, base: Backbone, adaptation: Adaptation):
        self.base, self.adaptation = shared_copy(base), adaptation
        self.adaptation.attach(self.base)
        self.model = nn.ModuleDict({"base": self.base.model, "adaptation": adaptation}).eval()
        self.original = base  # as it was given, whatever `attach` changes
        self.spec = f"{base.spec}+{adaptation.method}"
        self.geometry, self.has_text = base.geometry, base.has_text
        self.token_roles = [*base.token_roles, *["prompt"] * adaptation.n_prompts]

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def preprocess(self, images) -> Tensor:
        return self.base.preprocess(images)

    def tokenize(self, texts) -> Any:
        return self.base.tokenize(texts)

    def forward_vision(self, pixels: Tensor) -> Tensor:
        with self.adaptation.vision(self):  # entered here, so that users' hooks see what the blocks see
            features = self.base.forward_vision(pixels)
        return self.adaptation.image(features)

    def forward_text(self, tokens: Any) -> Tensor:
        return self.base.forward_text(tokens)

    def tower(self, name: str) -> nn.Module:
        return self.base.tower(name)

    def readout(self, tokens: Tensor) -> Tensor:
        return self.adaptation.image(self.base.readout(tokens))

    def token_embedding(self) -> nn.Embedding:
        return self.base.token_embedding()

    def pre_norm(self) -> nn.Module:
        return self.base.pre_norm()

    def sequence_first(self, tower: str) -> bool:
        return self.base.sequence_first(tower)

    @property
    def logit_scale(self) -> float:
        return self.base.logit_scale

    @torch.no_grad()
    def head(self, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Head:
        self._require("text")
        self.adaptation.require_classes(class_names)
        return self.adaptation.head(self, list(class_names), templates)

    def classifier(self, class_names: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> Tensor:
        """One unit embedding a class, `[C, e]`.

        Raises:
            ValueError: where classes have no embedding of their own (CoCoOp's depend on the image).
        """
        head = self.head(class_names, templates)
        if not isinstance(head, LinearHead):
            raise ValueError(
                f"{self.spec} has no fixed class embeddings ({type(head).__name__}); use head(...) on image embeddings."
            )
        return F.normalize(head.weight, dim=-1)

    def save(self, folder: str | Path) -> Path:
        """Write the learned parts; `load_adapted(base, folder)` opens them."""
        from vlsae.adaptation.checkpoint import save_adaptation

        return save_adaptation(self, folder)
