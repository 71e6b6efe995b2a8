"""CoOp as Dassl writes it: the prompt learner alone."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError, build
from vlsae.adaptation.frozen import take_class_bound
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("coop")
class CoOpFile(Layout):
    """`ctx` `[n, d]`, or `[C, n, d]` where contexts are class-specific."""

    described = "CoOp (ctx)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"ctx$") and not found.has(r"bias_vectors|meta_net")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, position: str | None = None
    ) -> Adaptation:
        take_class_bound(found, base)
        ctx = found.take("ctx")
        specific = ctx.ndim == 3
        if specific and len(class_names or ()) != len(ctx):
            raise AdaptationError(
                f"{found.source} has a context for each of {len(ctx)} classes, but {len(class_names or ())} names were given; "
                f"give class_names=[...] with the {len(ctx)} names in the order of its training."
            )
        settings = {"n_ctx": ctx.shape[-2], "class_specific": specific,
                    "position": found.assume("position", position, "end")}  # fmt: skip
        return build(base, "coop", class_names, settings, {"ctx": ctx}, found.source)
