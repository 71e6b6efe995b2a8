"""Whether codes are too small: the bias of reconstructions, and codes fitted again on their own support."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlsae.dictionaries.base import Codes, Dictionary
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
    return refined_codes(dictionary, x).dense()


@torch.no_grad()
def refined_codes(dictionary: Dictionary, x: Tensor) -> Codes:
    """The same as `refine`, as sparse codes."""
    if dictionary.signed:
        raise ValueError(f"Codes of {dictionary.family!r} have both signs; refinement keeps them non-negative.")
    codes = dictionary.encode_sparse(x)
    target = dictionary.transform(x.to(codes.values.dtype)) - dictionary.b_dec
    count = torch.bincount(codes.rows, minlength=codes.n)
    place = torch.arange(len(codes.rows), device=x.device) - (count.cumsum(0) - count)[codes.rows]  # within its row
    values = torch.empty_like(codes.values)
    for rows in torch.arange(codes.n, device=x.device).split(CHUNK):
        mine = slice(*torch.searchsorted(codes.rows, torch.stack([rows[0], rows[-1] + 1])).tolist())
        at = codes.rows[mine] - rows[0], place[mine]
        support = codes.latents.new_zeros(len(rows), max(1, int(count[rows].max())))
        active = torch.zeros_like(support, dtype=torch.bool)
        support[at], active[at] = codes.latents[mine], True
        atoms = dictionary.atoms[support].double() * active[..., None]
        found = nonnegative_codes((atoms @ target[rows].double()[..., None])[..., 0], atoms @ atoms.mT)
        values[mine] = found[at].to(values)
    return replace(codes, values=values)
