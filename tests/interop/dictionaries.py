"""Small dictionaries of ours with nothing at zero, for tests of what other projects can express."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.interop.make_fixtures import inputs
from vlsae.dictionaries.base import DICTIONARIES, Dictionary
from vlsae.dictionaries.transform import InputTransform

D, N = 8, 24
OPTIONS = {
    "topk": {"k": 5}, "abs_topk": {"k": 5}, "archetypal": {"k": 5, "candidates": 6}, "batch_norm_topk": {"k": 5},
    "projection": {"k": 3}, "batch_topk": {"k": 4}, "nested_dictionary": {"k": 4, "prefixes": [6, 14, N]},
    "nested_sparsity": {"ks": [4, N]}, "transcoder": {"k": N}, "crosscoder": {"layers": 2},
    "matching_pursuit": {"k": 6},
}  # fmt: skip
POSITIVE = ("running_var", "gain", "threshold")


@torch.no_grad()
def filled(family: str, transform: str = "none", seed: int = 0, **options) -> Dictionary:
    """A dictionary whose every weight is drawn, behind a transform that was fitted to `inputs`."""
    dictionary = DICTIONARIES.get(family)(
        D, D if family == "projection" else N, **{**OPTIONS.get(family, {}), **options}
    )
    generator = torch.Generator().manual_seed(seed)
    for name, value in dictionary.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if name in POSITIVE:
            drawn = 0.5 + drawn.abs()
        elif name == "b_dec":
            drawn = 0.5 + 0.3 * drawn
        elif name == "W_dec":
            drawn = F.normalize(drawn, dim=1) * (1.0 if family == "matching_pursuit" else 1.3)
        elif name not in ("W_enc", "rows", "candidates"):
            drawn = 0.3 * drawn
        value.copy_(drawn)
    dictionary.transform = InputTransform.fit(inputs(D, 50, seed=7), transform)
    dictionary.metadata = {"model": "open_clip:ViT-B-16/openai", "site": "vision.10.resid_post", "l1": 0.5}
    return dictionary
