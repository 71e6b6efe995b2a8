"""Whether codes are too small: the bias of reconstructions, and codes fitted again on their own support."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.least_squares import nonnegative_codes

CHUNK = 512  # vectors refined at a time


def relative_reconstruction_bias(x: Tensor, xhat: Tensor) -> float:
    """`gamma = argmin_g E||xhat / g - x||^2 = E||xhat||^2 / E<x, xhat>` (arXiv 2404.16014, equation 10).

    1 for unbiased reconstructions, below 1 where they shrink.

    Args:
        x, xhat: `[N, d]`, both relative to the same origin (take `b_dec` off).

    Raises:
        ValueError: where reconstructions are not correlated with the data at all.

    Example:
        >>> x = torch.randn(10, 4)
        >>> round(relative_reconstruction_bias(x, 0.8 * x), 6)
        0.8
    """
    inner = (x.double() * xhat.double()).sum()
    if inner == 0:
        raise ValueError("E<x, xhat> is 0: the reconstructions say nothing of the data; is the dictionary trained?")
    return float(xhat.double().square().sum() / inner)


@torch.no_grad()
def refine(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Codes with their support kept and their values fitted again, `argmin_{z >= 0, supp} ||x - z W_dec - b_dec||^2`.

    Larger values than the encoder's are its shrinkage (Gao et al. 2024, section 5.3: ReLU codes grow, TopK's do not).

    Args:
        dictionary: with non-negative codes.
        x: `[N, d]`.

    Returns:
        `[N, n_latents]`; equal to the codes where active atoms are orthonormal and the encoder is their transpose.

    Raises:
        ValueError: for a family with codes of both signs.
    """
    if dictionary.signed:
        raise ValueError(f"Codes of {dictionary.family!r} have both signs; refinement keeps them non-negative.")
    out = []
    for part in x.split(CHUNK):
        z = dictionary.encode(part)
        target = (dictionary.transform(part.to(z)) - dictionary.b_dec).double()
        order = z.argsort(dim=1, descending=True, stable=True)[:, : max(1, int((z > 0).sum(1).max()))]
        active = z.gather(1, order) > 0
        atoms = dictionary.atoms.double()[order] * active[..., None]
        codes = nonnegative_codes((atoms @ target[..., None])[..., 0], atoms @ atoms.mT)
        out.append(torch.zeros_like(z).scatter(1, order, (codes * active).to(z)))
    return torch.cat(out)
