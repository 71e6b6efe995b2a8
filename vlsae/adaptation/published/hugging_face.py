"""Models that transformers has fine-tuned: a folder with `model.safetensors`, of both towers or the vision tower alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.adaptation.published.open_clip import build_full
from vlsae.backbones.base import Backbone

_PROJECTION = "visual_projection.weight"


@LAYOUTS.register("hugging_face")
class HuggingFaceFolder(Layout):
    """All weights under transformers' names; a vision tower alone has `vision_model.` in version 4, not in 5."""

    described = "a CLIP of transformers (vision_model.embeddings.patch_embedding.weight)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"(vision_model\.)?embeddings\.patch_embedding\.weight$")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        if not hasattr(base.model, "vision_model"):
            raise AdaptationError(
                f"{found.source} has the names of transformers, but {base.spec} is a model of another library; load the same "
                "CLIP as hf:ID."
            )
        found.ignore(r"(?:\w+\.)?embeddings\.position_ids")
        if not found.has(r"vision_model\."):
            found.tensors = {f"vision_model.{name}": value for name, value in found.tensors.items()}
        if found.has(r"text_model\."):
            return build_full(found, base, ["vision", "text"])
        lacking = [_PROJECTION] if hasattr(base.model, "visual_projection") and not found.has(_PROJECTION) else []
        if lacking:
            warnings.warn(
                f"{found.source} is a vision tower without a projection; {base.spec}'s own is used.", stacklevel=3
            )
        return build_full(found, base, ["vision"], kept=lacking)
