"""KgCoOp as Dassl writes it: CoOp's prompt learner with leftovers that its code never uses."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.frozen import take_class_bound
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("kgcoop")
class KgCoOpFile(Layout):
    """`ctx` `[n, d]`; `bias_vectors` and `meta_net.linear1` have no effect in the published code and are ignored."""

    described = "KgCoOp (ctx, bias_vectors)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"bias_vectors")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, position: str | None = None
    ) -> Adaptation:
        take_class_bound(found, base)
        found.ignore(r"bias_vectors|meta_net\.linear1\.(?:weight|bias)")
        ctx = found.take("ctx")
        settings = {"n_ctx": ctx.shape[0], "words": "", "position": found.assume("position", position, "end")}
        return build(base, "kgcoop", class_names, settings, {"ctx": ctx}, found.source)
