"""Tip-Adapter's cache folder: one bare tensor a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlsae.adaptation.adaptation import Adaptation
from vlsae.adaptation.checkpoint import AdaptationError, build
from vlsae.adaptation.layout import LAYOUTS, Found, Layout
from vlsae.backbones.base import Backbone


@LAYOUTS.register("tip_adapter")
class TipAdapterFolder(Layout):
    """`keys_{k}shots.pt` `[e, N]`, `values_{k}shots.pt` one-hot `[N, C]`, and trained keys `best_F_{k}shots.pt` `[N, e]`."""

    described = "a cache of Tip-Adapter (a folder with keys_16shots.pt and values_16shots.pt)"

    def sniff(self, found: Found) -> bool:
        return found.has(r"keys_\d+shots$")

    def read(
        self, found: Found, base: Backbone, class_names: Sequence[str] | None, *, shots: int | None = None,
        tuned: bool | None = None, alpha: float | None = None, beta: float | None = None,
    ) -> Adaptation:  # fmt: skip
        """`shots` chooses among caches, `tuned` between the trained keys (Tip-Adapter-F) and the images' own."""
        held = sorted(int(match[1]) for name in found.tensors if (match := re.fullmatch(r"keys_(\d+)shots", name)))
        shots = held[0] if shots is None and len(held) == 1 else shots
        if shots not in held:
            raise AdaptationError(f"{found.source} holds caches of {held} shots; give one of these as shots=.")
        if found.has(f"best_F_{shots}shots$"):
            tuned = found.assume("tuned", tuned, True)
        keys = found.take(f"best_F_{shots}shots") if tuned else found.take(f"keys_{shots}shots").T
        values = found.take(f"values_{shots}shots")
        found.ignore(r"(?:keys|values|best_F)_\d+shots")  # what was not asked for
        if len(class_names or ()) != values.shape[1]:
            raise AdaptationError(
                f"{found.source} is a cache of {values.shape[1]} classes, but {len(class_names or ())} names were given; give "
                f"class_names=[...] with the {values.shape[1]} names in the order of its labels."
            )
        settings = {"alpha": found.assume("alpha", alpha, 1.0), "beta": found.assume("beta", beta, 5.5),
                    "cache_size": len(values)}  # fmt: skip
        method = "tip_adapter_f" if tuned else "tip_adapter"
        return build(base, method, class_names, settings, {"keys": keys.contiguous(), "values": values}, found.source)
