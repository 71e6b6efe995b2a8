"""Inputs that several models find most typical of one shared latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def maximise_activations(
    scores: Mapping[str, Callable[[Tensor], Tensor]],
    start: Tensor,
    *,
    penalty: float = 1e-2,
    steps: int = 200,
    lr: float = 0.05,
) -> dict[str, Tensor]:
    """Coordinated activation maximisation: for every model, pixels that maximise the same latent.

    `x_i* = argmax_x z_ik(x) - penalty ||x||^2` by Adam (arXiv 2502.03714, with this regulariser in place
    of phase-only MACO, for which there is `maximise_phase`).

    Args:
        scores: by model, a differentiable function of pixels `[B, ...]` to the latent's value `[B]`, or its
            pre-activation, which has a gradient where the latent is silent.
        start: `[B, ...]`, where all models begin.
        penalty: weight of the regulariser.
        steps: of the optimiser.
        lr: its learning rate.

    Returns:
        Pixels by model, shaped like `start`.

    Raises:
        ValueError: for a score that is not `[B]` or has no gradient.

    Example:
        >>> best = maximise_activations({"a": lambda x: x.sum(1)}, torch.zeros(1, 2), penalty=0.5)
        >>> best["a"].round(decimals=2).tolist()
        [[1.0, 1.0]]
    """
    return {name: _maximise(name, score, start, penalty, steps, lr) for name, score in scores.items()}


def _maximise(name: str, score, start: Tensor, penalty: float, steps: int, lr: float) -> Tensor:
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        value = score(x)
        if value.shape != (len(x),) or not value.requires_grad:
            raise ValueError(
                f"The score of {name!r} has shape {tuple(value.shape)} for {len(x)} inputs, gradient: "
                f"{value.requires_grad}; give a differentiable function of pixels to [{len(x)}] values."
            )
        (x.grad,) = torch.autograd.grad(penalty * x.square().sum() - value.sum(), x)  # of pixels, not of the model
        optimizer.step()
    return x.detach()


def natural_magnitudes(images: Tensor) -> Tensor:
    """The mean magnitude spectrum of images, `mean_n |FFT x_n|`, on which `maximise_phase` stands.

    Args:
        images: `[N, ..., H, W]`, in the units of the pixels to be found.

    Returns:
        `[..., H, W // 2 + 1]`, as `torch.fft.rfft2` orders frequencies.

    Raises:
        ValueError: for less than one image, or fewer than three axes.

    Example:
        >>> natural_magnitudes(torch.ones(3, 1, 2, 2))[0].tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    if images.ndim < 3 or len(images) == 0:
        raise ValueError(f"Images have shape {tuple(images.shape)}; give at least one, [N, ..., H, W].")
    return torch.fft.rfft2(images).abs().mean(0)


def maximise_phase(
    score: Callable[[Tensor], Tensor], magnitudes: Tensor, start: Tensor, *, steps: int = 200, lr: float = 0.05
) -> Tensor:
    """Phase-only MACO: the image of a fixed magnitude spectrum on which a score is largest.

    `x* = IFFT(r exp(i phi*)), phi* = argmax_phi score(IFFT(r exp(i phi)))` by Adam (Fel et al. 2023, arXiv 2306.06805; USAE,
    arXiv 2502.03714, maximises shared latents so). For a linear score `<w, x>`, `phi*` is the phase of `FFT w`.

    Args:
        score: a differentiable function of pixels `[B, ..., H, W]` to the latent's value `[B]`, or its pre-activation.
        magnitudes: `r`, `[..., H, W // 2 + 1]`, such as from `natural_magnitudes`.
        start: `[B, ..., H, W]`, whose phases are the first ones; noise has random ones. The mean and the up to three
            frequencies that are their own opposites keep its signs, since real pixels have no other phases there.
        steps: of the optimiser.
        lr: its learning rate, in radians.

    Returns:
        Pixels `[B, ..., H, W]`, whose magnitude spectrum is `r`.

    Raises:
        ValueError: for magnitudes of another size, or a score that is not `[B]` or has no gradient.

    Example:
        >>> w = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
        >>> best = maximise_phase(lambda x: (w * x).sum((1, 2)), natural_magnitudes(w), torch.ones(1, 2, 2))
        >>> best.shape
        torch.Size([1, 2, 2])
    """
    height, width = start.shape[-2:]
    if magnitudes.shape != (*start.shape[1:-1], width // 2 + 1):
        raise ValueError(
            f"Magnitudes have shape {tuple(magnitudes.shape)}; for images {tuple(start.shape)} give "
            f"{(*start.shape[1:-1], width // 2 + 1)}, as natural_magnitudes makes them of images of this size."
        )
    first = torch.fft.rfft2(start.detach()).angle()

    def pixels(turn: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.polar(magnitudes.expand_as(turn), first + _odd(turn, width)), s=(height, width))

    return pixels(_maximise("phase", lambda turn: score(pixels(turn)), torch.zeros_like(first), 0.0, steps, lr))


def _odd(turn: Tensor, width: int) -> Tensor:
    """Turns of phases that leave pixels real: opposite at opposite frequencies, which two columns hold both of."""
    both = [0, -1] if width % 2 == 0 else [0]
    opposite = -torch.arange(turn.shape[-2], device=turn.device) % turn.shape[-2]
    odd = turn.clone()
    odd[..., both] = (turn[..., both] - turn[..., opposite, :][..., both]) / 2
    return odd
