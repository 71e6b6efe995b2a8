"""CLIP-Adapter as Dassl writes it: two linear maps."""

from __future__ import annotations

from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import build
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("clip_adapter")
class CLIPAdapterFile(Layout):
    """`fc.0.weight` `[e / 4, e]` and `fc.2.weight` `[e, e / 4]`; the ratio stands in the code alone."""

    described = "CLIP-Adapter (fc.0.weight, fc.2.weight)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"fc\.[02]\.weight$")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, ratio: float | None = None
    ) -> Adaptation:
        down, up = found.take("fc.0.weight"), found.take("fc.2.weight")
        settings = {"ratio": found.assume("ratio", ratio, 0.2), "reduction": max(1, up.shape[0] // down.shape[0])}
        return build(base, "clip_adapter", class_names, settings, {"down": down, "up": up}, found.source)
