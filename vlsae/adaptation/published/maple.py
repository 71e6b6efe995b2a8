"""MaPLe as Dassl writes it: the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.frozen import take_class_bound, take_frozen
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("maple")
class MaPLeFile(Layout):
    """`prompt_learner.` with `ctx` `[n, d]`, `proj`, `compound_prompts_text.{i}`, `compound_prompt_projections.{i}`; CLIP."""

    described = "MaPLe (prompt_learner.compound_prompts_text)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"prompt_learner\.(compound_prompt|proj\.)")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        learned = r"prompt_learner\.(proj\.(?:weight|bias)|compound_prompt_projections\.\d+\.(?:weight|bias))"
        deep = found.take_numbered(r"prompt_learner\.compound_prompts_text\.(\d+)")
        tensors = found.take_all(learned) | {"ctx": found.take("prompt_learner.ctx")}
        take_class_bound(found, base, "prompt_learner.", len(tensors["ctx"]))
        take_frozen(found, base)
        tensors |= {f"compound_prompts_text.{i}": prompts for i, prompts in enumerate(deep)}
        settings = {"n_ctx": len(tensors["ctx"]), "depth": 1 + len(deep)}
        return build(base, "maple", class_names, settings, tensors, found.source)
