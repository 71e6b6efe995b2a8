"""Linear layers in float32 by oneDNN, their weights laid out for it beforehand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae import onednn


def pack(module: nn.Module) -> None:
    """Let the linear layers and self-attentions inside a float32 module on the processor use packed weights.

    The copies take as much memory as the weights. Where gradients are wanted, or the weights have been changed or moved
    since, a layer goes its own way again.

    Args:
        module: changed in place; hooks on its parts, its parameters and its state dict stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            part.forward = _Forward(part, _attention(part))
        elif type(part) is nn.Linear:
            part.forward = _Forward(part, _linear(part))


class _Forward:
    """A layer's `forward`; a copy of the layer goes its own way again."""

    def __init__(self, part: nn.Module, call: Callable):
        self.part, self.call = part, call

    def __call__(self, *args, **options):
        return self.call(*args, **options)

    def __deepcopy__(self, memo: dict) -> Callable:
        copy = memo[id(self.part)]
        return type(copy).forward.__get__(copy)


class _Product:
    """`x @ weight.T + bias` with a packed weight; `fits` says whether it may stand for the layer's own."""

    def __init__(self, part: nn.Module, weight: str, bias: str):
        self.part, self.names = part, (weight, bias)
        weight = getattr(part, weight)
        self.weight, self.where, self.version = weight, weight.data_ptr(), weight._version
        self.packed = onednn.packed(weight.detach())

    def fits(self, x: Tensor) -> bool:
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        weight = getattr(self.part, self.names[0])
        same = weight is self.weight and weight.data_ptr() == self.where and weight._version == self.version
        alike = x.dtype == weight.dtype == torch.float32 and x.device == weight.device
        return same and alike and x.device.type == "cpu" and not wants_gradient

    def __call__(self, x: Tensor) -> Tensor:
        return onednn.product(x, self.packed, getattr(self.part, self.names[1]))


def _linear(part: nn.Linear) -> Callable[[Tensor], Tensor]:
    own, product = part.forward, _Product(part, "weight", "bias")
    return lambda x: product(x) if product.fits(x) else own(x)


def _attention(part: nn.MultiheadAttention) -> Callable:
    """Self-attention without masks, as in a ViT; anything else goes the module's own way."""
    own, heads = part.forward, part.num_heads
    if not part.batch_first or part.in_proj_weight is None or part.bias_k is not None or part.add_zero_attn:
        return own
    project = _Product(part, "in_proj_weight", "in_proj_bias")
    leave = _Product(part.out_proj, "weight", "bias")

    def forward(query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, **options):
        masked = key_padding_mask is not None or attn_mask is not None or options.get("is_causal")
        same = query is key and key is value and project.fits(query) and leave.fits(query)
        if need_weights or masked or not same:
            return own(query, key, value, key_padding_mask, need_weights, attn_mask, **options)
        q, k, v = project(query).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None

    return forward
