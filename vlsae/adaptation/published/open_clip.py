"""Models that open_clip has fine-tuned: `epoch_K.pt`, or a folder with its safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError, build
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.adaptation.methods.full import weights_behind
from vlsae.backbones.base import Backbone


@LAYOUTS.register("open_clip")
class OpenCLIPFile(Layout):
    """All weights under open_clip's names, maybe behind `module.`; the architecture is not in the file."""

    described = "a CLIP of open_clip (visual.conv1.weight)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"visual\.")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        if not hasattr(base.model, "visual"):
            raise AdaptationError(
                f"{found.source} has the names of open_clip, but {base.spec} is a model of another library; load the same CLIP "
                "as open_clip:ARCH/TAG."
            )
        found.ignore("input_resolution|context_length|vocab_size")
        return build_full(found, base, ["vision", "text"] if base.has_text else ["vision"])


def build_full(found: Found, base: Backbone, towers: list[str], kept: Sequence[str] = ()) -> Adaptation:
    """A fine-tuned model of the base's own names.

    Args:
        found: its weights.
        base: of the same architecture.
        towers: that the file holds.
        kept: weights of the base model that stand for what the file lacks.
    """
    held = {name: value.detach().cpu() for name, value in base.model.state_dict().items()}
    tensors = {}
    for name in weights_behind(base, towers):
        tensors[f"weights.{name.replace('.', '/')}"] = held[name] if name in kept else found.take(name)
    for name in ("logit_scale", "logit_bias"):
        if name in found.tensors and name in held:
            _say_unused(found, name, found.take(name), held[name])
    return build(base, "full", None, {"towers": towers}, tensors, found.source)


def _say_unused(found: Found, name: str, theirs: Tensor, ours: Tensor) -> None:
    """Scales of logits are the base model's; another one in a file is not lost without a word."""
    if abs(float(theirs) - float(ours)) > 1e-3:
        warnings.warn(
            f"{found.source} has {name}={float(theirs):.4f}, which is not used: the model keeps {float(ours):.4f}.",
            stacklevel=5,
        )
