"""IVLP and PromptSRC as Dassl writes them: the whole model, PromptSRC's with its frozen teacher."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.frozen import take_class_bound, take_frozen
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.adaptation.published.vpt import take_text_prompts, take_vision_prompts
from vlsae.backbones.base import Backbone

_TEACHER = "prompt_learner.ZS_image_encoder."


@LAYOUTS.register("ivlp")
class IVLPFile(Layout):
    """VPT's vision prompts, `prompt_learner.ctx` `[n, d]`, `text_encoder.transformer.resblocks.{i}.VPT_shallow` `[n, d]`."""

    described = "IVLP or PromptSRC (prompt_learner.ctx, image_encoder.VPT)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"prompt_learner\.") and found.has(r"(image|text)_encoder\..*VPT")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        shallow, deep = take_vision_prompts(found)
        ctx, deep_ctx = found.take("prompt_learner.ctx"), take_text_prompts(found)
        take_class_bound(found, base, "prompt_learner.", len(ctx))
        method = "promptsrc" if found.has(_TEACHER) else "ivlp"
        take_frozen(found, base, teacher=_TEACHER)
        tensors = {"shallow": shallow, "ctx": ctx} | {f"deep.{i}": prompts for i, prompts in enumerate(deep)}
        tensors |= {f"deep_ctx.{i}": prompts for i, prompts in enumerate(deep_ctx)}
        settings = {"n_ctx": len(ctx), "n_prompts": len(shallow), "text_depth": 1 + len(deep_ctx),
                    "vision_depth": 1 + len(deep)}  # fmt: skip
        return build(base, method, class_names, settings, tensors, found.source)
