"""What each latent and the reconstruction's error contribute to a read-out, to first order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.latent_effects import Readout, as_readout, read, written


@dataclass(frozen=True)
class NodeEffects:
    """Effects of latents `[n, n_latents]` and of the error `[n]`, positive where they raise the read-out."""

    latents: Tensor
    error: Tensor


def node_effects(dictionary: Dictionary, x: Tensor, readout: Tensor | Readout) -> NodeEffects:
    """`IE_i = z_i <d_i, grad m(x)>` and `<x - xhat, grad m(x)>`: attribution with zero in place of the node.

    For a linear read-out they are what ablations change, and their sum is `m(x) - m(b)` with b the reconstruction of no
    codes (Marks et al. 2025, arXiv 2403.19647, eq. 3; Kharlapenko et al. 2025, arXiv 2504.13756). `latent_effects` gives the
    exact ones, with the opposite sign.

    Args:
        dictionary: with one decoder.
        x: activations `[n, d]`.
        readout: a vector `[d]`, or a function of `[n, d]` that gives `[n]`, each row by itself and differentiable.

    Raises:
        ValueError: for read-outs that are not `[n]` or not finite, or another kind of decoder.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae = ReLUDictionary(2, 2)
        >>> for weight in (sae.W_enc, sae.W_dec):
        ...     _ = weight.data.copy_(torch.eye(2))
        >>> found = node_effects(sae, torch.tensor([[1.0, -2.0]]), torch.tensor([1.0, 5.0]))
        >>> found.latents.tolist(), found.error.tolist()
        ([[1.0, 0.0]], [-10.0])
    """
    atoms = written(dictionary)
    x = x.detach().to(atoms).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(read(as_readout(readout), x).sum(), x)
    with torch.no_grad():
        z = dictionary.encode(x)
        return NodeEffects(z * (gradient @ atoms.T), ((x - dictionary.decode(z)) * gradient).sum(1))
