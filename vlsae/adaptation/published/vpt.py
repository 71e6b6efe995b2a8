"""VPT as in MaPLe's repository: the whole model, with prompts among the vision tower's blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.frozen import take_frozen
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone

_BLOCKS = r"transformer\.resblocks\.(\d+)\.VPT_shallow"


def take_vision_prompts(found: Found) -> tuple[Tensor, list[Tensor]]:
    """The prompts of the first block and those of the next ones."""
    return found.take("image_encoder.VPT"), found.take_numbered(rf"image_encoder\.{_BLOCKS}", 1)


def take_text_prompts(found: Found) -> list[Tensor]:
    """What replaces the context before block 1, 2, ..."""
    return found.take_numbered(rf"text_encoder\.{_BLOCKS}", 1)


@LAYOUTS.register("vpt")
class VPTFile(Layout):
    """`image_encoder.VPT` `[v, d]`, `image_encoder.transformer.resblocks.{i}.VPT_shallow` `[v, d]`, and the frozen CLIP."""

    described = "VPT (image_encoder.VPT)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"image_encoder\..*VPT") and not found.has(r"prompt_learner\.")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        shallow, deep = take_vision_prompts(found)
        take_frozen(found, base)
        tensors = {"shallow": shallow} | {f"deep.{i}": value for i, value in enumerate(deep)}
        settings = {"n_prompts": len(shallow), "depth": 1 + len(deep)}
        return build(base, "vpt", class_names, settings, tensors, found.source)
