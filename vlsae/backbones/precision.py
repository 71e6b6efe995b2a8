"""The arithmetic of a vision tower's blocks: float32 as torch computes it, float32 by oneDNN, or bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vlsae import onednn
from vlsae.backbones.packed import pack

if TYPE_CHECKING:
    from vlsae.backbones.base import Backbone

PRECISIONS = ("float32", "float32_onednn", "bfloat16")


def set_precision(model: Backbone, precision: str) -> Backbone:
    """Choose how the blocks of a model's vision tower compute, from now on; nearly all the work is in them.

    - "float32": as torch does by itself.
    - "float32_onednn": products by oneDNN, for processors: half the time where torch's own do not use AVX-512, which
      is so on AMD's. Tokens agree to about 1e-6, since sums are taken in another order.
    - "bfloat16": for processors and GPUs with its instructions. It has 8 significant bits; after 12 blocks tokens are
      about 1 % off in norm.

    What comes before the blocks (patches, positions) and after them (the last norm, the projection) stays as it is, and
    so do the text tower, embeddings' float32 and `readout`. `weight_hash` names the weights that were loaded.

    Args:
        model: changed in place; move it to its device before. Only a model of "float32" can be changed.
        precision: one of the three.

    Returns:
        The model.

    Raises:
        ValueError: for another precision, a model that was changed already, or where oneDNN is not to be had.

    Example:
        >>> from vlsae.backbones import load_model
        >>> set_precision(load_model("tiny"), "bfloat16").precision
        'bfloat16'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    if precision == model.precision:
        return model
    if model.precision != "float32":
        raise ValueError(f"{model.spec} computes in {model.precision} already; load it again for {precision}.")
    if precision == "float32_onednn":
        if model.device.type != "cpu" or not onednn.is_available():
            raise ValueError(
                f"precision='float32_onednn' needs a model on the processor and a torch with oneDNN; {model.spec} is on "
                f"{model.device}, and this torch has {'it' if onednn.is_available() else 'none'}. Use 'float32' or 'bfloat16'."
            )
        pack(model.blocks("vision"))
    else:
        _round(model)
    model.precision = precision
    return model


def _round(model: Backbone) -> None:
    """The blocks in bfloat16, between two casts."""
    _ = model.weight_hash  # of the weights before they are rounded
    blocks = model.blocks("vision").to(torch.bfloat16)

    def lower(_module, args, kwargs):
        if args:
            return (args[0].to(torch.bfloat16), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: kwargs[name].to(torch.bfloat16)}

    def raised(_module, _args, output):
        return (output[0].float(), *output[1:]) if isinstance(output, tuple) else output.float()

    blocks[0].register_forward_pre_hook(lower, with_kwargs=True)
    blocks[-1].register_forward_hook(raised)
