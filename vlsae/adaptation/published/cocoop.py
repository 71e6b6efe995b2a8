"""CoCoOp as Dassl writes it: the prompt learner with its network."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.frozen import take_class_bound
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("cocoop")
class CoCoOpFile(Layout):
    """`ctx` `[n, d]`, `meta_net.linear1` `[h, e]`, `meta_net.linear2` `[d, h]`."""

    described = "CoCoOp (ctx, meta_net)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"meta_net\.") and not found.has(r"bias_vectors")

    def read(self, found: Found, base: Backbone, class_names: Sequence[str] | None) -> Adaptation:
        take_class_bound(found, base)
        tensors = {"ctx": found.take("ctx")} | found.take_all(r"(meta_net\.linear[12]\.(?:weight|bias))")
        settings = {"n_ctx": len(tensors["ctx"]), "words": ""}
        return build(base, "cocoop", class_names, settings, tensors, found.source)
