"""What a read-out loses without each latent: by ablation, or by integrated gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Dictionary

STEPS = 6  # of the path from no codes to all, as in the released code
ABLATED = 8192  # activations that a read-out gets at a time

Readout = Callable[[Tensor], Tensor]


def zero_shot_margin(words: Tensor, concept: int, scale: float = 100.0) -> Readout:
    """The read-out `m(x) = l_c - mean_{j != c} l_j` with `l_j = scale cos(x, words_j)`, for embeddings `x`.

    What the difference of a letter's logit from the others' mean is to Chanin et al. 2024 (arXiv 2409.14507).

    Args:
        words: embeddings of all classes, `[n_classes, d]`, two or more.
        concept: the row of the class.
        scale: CLIP's `exp(logit_scale)`.

    Returns:
        A function of `[n, d]` that gives `[n]`.

    Raises:
        ValueError: for fewer than two classes, or a row that does not exist.

    Example:
        >>> margin = zero_shot_margin(torch.eye(2), 0, scale=1.0)
        >>> round(margin(torch.tensor([[3.0, 4.0]])).item(), 4)
        -0.2
    """
    if words.ndim != 2 or len(words) < 2 or not 0 <= concept < len(words):
        raise ValueError(f"Words are {list(words.shape)}, concept={concept}; give [2 or more, d] and one of its rows.")
    unit = F.normalize(words.detach(), dim=1)
    others = torch.arange(len(unit), device=unit.device) != concept
    weight = scale * (unit[concept] - unit[others].mean(0))
    return lambda x: F.normalize(x, dim=1) @ weight.to(x)


def written(dictionary: Dictionary) -> Tensor:
    """What a code of 1 adds to the reconstruction, `[n_latents, d]`: atoms in the units of the activations.

    Raises:
        ValueError: for a family whose decoder is not `z W_dec + b_dec`, or a transform that depends on the token.
    """
    if type(dictionary)._decode is not Dictionary._decode or not dictionary.transform.affine:
        raise ValueError(
            f"What a latent of {dictionary.family!r} behind the transform {dictionary.transform.kind!r} writes depends "
            "on the token; use a family with one decoder, and a transform of all tokens alike."
        )
    atoms = dictionary.atoms
    return dictionary.transform.inverse(atoms) - dictionary.transform.inverse(torch.zeros_like(atoms[:1]))


def as_readout(readout: Tensor | Readout) -> Readout:
    """A vector as the linear function that it stands for; functions as they are."""
    return (lambda x: x @ readout.to(x)) if isinstance(readout, Tensor) else readout


def latent_effects(
    dictionary: Dictionary, x: Tensor, readout: Tensor | Readout, effect: str = "ablation", *, steps: int = STEPS
) -> Tensor:
    """How the read-out of each row changes without each latent, with the error of the reconstruction kept.

    `ablation`: `e_i = m(x - z_i d_i) - m(x)`, which is `-z_i <d_i, w>` for a linear `m(x) = <x, w>`.
    `integrated_gradients`: `e_i = -z_i int_0^1 <d_i, grad m(x - (1 - t) sum_j z_j d_j)> dt`, by the midpoints of `steps`
    parts of the path; the same for a linear `m` (Chanin et al. 2024, arXiv 2409.14507).

    Args:
        dictionary: with one decoder.
        x: activations `[n, d]`.
        readout: a vector `[d]`, or a function of `[n, d]` that gives `[n]`, each row by itself and differentiable.
        effect: "ablation" (a forward pass for every active code) or "integrated_gradients" (`steps` for all of them).
        steps: of the path, 1 or more.

    Returns:
        `[n, n_latents]`; negative where the latent raises the read-out.

    Raises:
        ValueError: for an unknown `effect`, other shapes, or read-outs that are not `[n]` or not finite.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae = ReLUDictionary(2, 2)
        >>> for weight in (sae.W_enc, sae.W_dec):
        ...     _ = weight.data.copy_(torch.eye(2))
        >>> latent_effects(sae, torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 5.0])).tolist()
        [[-1.0, -10.0]]
    """
    if effect not in ("ablation", "integrated_gradients") or steps < 1:
        raise ValueError(f"effect={effect!r}, steps={steps}: use 'ablation' or 'integrated_gradients', and 1 or more.")
    with torch.no_grad():
        z, atoms = dictionary.encode(x), written(dictionary)
    x = x.detach().to(atoms)
    if isinstance(readout, Tensor) and readout.shape != x.shape[1:]:
        raise ValueError(f"The read-out is {list(readout.shape)}; activations want a vector of [{x.shape[1]}].")
    if effect == "integrated_gradients":
        return -z * (_mean_gradient(x, z @ atoms, as_readout(readout), steps) @ atoms.T)
    if isinstance(readout, Tensor):
        return -z * (atoms @ readout.to(atoms))
    return _ablate(x, z, atoms, readout)


def read(readout: Readout, x: Tensor) -> Tensor:
    """The read-outs of `x [n, d]`, after a look at their shape and values."""
    m = readout(x)
    if m.shape != x.shape[:1] or not torch.isfinite(m).all():
        raise ValueError(
            f"The read-out of activations {list(x.shape)} is {list(m.shape)}; it must give one finite number a row."
        )
    return m


def _mean_gradient(x: Tensor, part: Tensor, readout: Readout, steps: int) -> Tensor:
    total = torch.zeros_like(x)
    for step in range(steps):
        at = (x - (1 - (step + 0.5) / steps) * part).requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(read(readout, at).sum(), at)[0]
    return total / steps


@torch.no_grad()
def _ablate(x: Tensor, z: Tensor, atoms: Tensor, readout: Readout) -> Tensor:
    found, whole = torch.zeros_like(z), read(readout, x)
    rows, latents = z.nonzero(as_tuple=True)
    for row, latent in zip(rows.split(ABLATED), latents.split(ABLATED), strict=True):
        without = x[row] - z[row, latent, None] * atoms[latent]
        found[row, latent] = (read(readout, without) - whole[row]).to(found)
    return found
