"""Float32 products by oneDNN, on processors where torch's own are slower.

On processors with AVX-512 that are not Intel's, torch's own float32 products stop at AVX2; oneDNN's take half the time and
give the same but for the order of sums. In bfloat16, torch takes oneDNN itself.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether this torch has oneDNN and its operators."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)


@lru_cache(maxsize=1)
def is_quick() -> bool:
    """Whether its float32 products are to be had and not slower than torch's own."""
    return is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def packed(W: Tensor) -> Tensor:
    """`W [n, d]` laid out for `product`."""
    return torch.ops.mkldnn._reorder_linear_weight(W)


def product(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + bias` for float32 on the processor; `W` may be packed."""
    return torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
