"""Which few concepts do what an adaptation does: a direction as the sparse code that has its effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.backbones.base import Backbone
from vlsae.backbones.head import Head
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.least_squares import nonnegative_codes
from vlsae.dictionaries.pursuit import gradient_pursuit
from vlsae.metrics.latent_effects import written

Inject = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CleanedVector:
    """A direction as a sparse code.

    Attributes:
        theta: codes `[n_latents]`, not negative.
        vector: what they write, `[d]`.
        loss: of the vector, without the penalty.
        loss_curve: penalised loss at every step.
    """

    theta: Tensor
    vector: Tensor
    loss: float
    loss_curve: list[float] = field(default_factory=list)

    @property
    def active(self) -> list[int]:
        """Latents in use, strongest first."""
        order = self.theta.argsort(descending=True)
        return order[: int((self.theta > 0).sum())].tolist()


def clean_vector(
    v: Tensor, dictionary: Dictionary, inject: Inject, loss_fn: Callable[[Tensor], Tensor], l1: float = 2e-2, *,
    init: str = "encoder", lr: float = 1e-2, steps: int = 1000, patience: int = 50,
) -> CleanedVector:  # fmt: skip
    """The sparse code whose vector does what `v` does: `argmin_{theta >= 0} loss(inject(theta D)) + l1 ||theta||_1`.

    Task-vector cleaning (Kharlapenko et al. 2025, arXiv 2504.13756) for any direction. Codes are projected to `>= 0` after
    each step of Adam, where the paper passes them through the encoder's activation, so that a silent latent can come
    back. `v` is a difference, so the decoder's bias takes no part.

    Args:
        v: `[d]`, such as `displacement` or a difference of class means.
        dictionary: with one decoder and codes that are not negative.
        inject: a vector `[d]` to the model's outputs with it in force, such as `injector`.
        loss_fn: outputs to a scalar.
        l1: of the penalty, 0 or more.
        init: "encoder" (pre-activations of `v`, those below 0 cut) or "nnls" (the best non-negative fit of `v`).
        lr: of Adam; steps: at most; patience: steps without a better loss after which it ends.

    Returns:
        The best code on the way.

    Raises:
        ValueError: for another width, an unknown start, or a dictionary with signed codes.
        FloatingPointError: when the loss is not finite.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> sae = ReLUDictionary(2, 2)
        >>> for weight in (sae.W_enc, sae.W_dec):
        ...     _ = weight.data.copy_(torch.eye(2))
        >>> only_first = lambda vector: vector[0]
        >>> clean_vector(torch.tensor([1.0, 1.0]), sae, only_first, lambda y: (y - 1).square(), l1=0.01).active
        [0]
    """
    if l1 < 0 or steps < 0 or patience < 1 or not lr > 0:
        raise ValueError(
            f"l1={l1}, steps={steps}, patience={patience}, lr={lr}: give l1 >= 0, steps >= 0, the rest > 0."
        )
    theta, atoms = _start(v, dictionary, init), written(dictionary).detach()
    theta.requires_grad_()
    optimizer = torch.optim.Adam([theta], lr)
    curve: list[float] = []
    best, best_loss, best_step, kept = float("inf"), float("inf"), 0, theta.detach().clone()
    for step in range(steps + 1):
        loss = loss_fn(inject(theta @ atoms))
        total = loss + l1 * theta.sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"The loss became {total.item()} at step {step}; lower lr={lr}.")
        curve.append(total.item())
        if curve[-1] < best:
            best, best_loss, best_step, kept = curve[-1], loss.item(), step, theta.detach().clone()
        if step - best_step >= patience or step == steps:
            break
        (theta.grad,) = torch.autograd.grad(total, theta)
        optimizer.step()
        with torch.no_grad():
            theta.clamp_(min=0)
    return CleanedVector(kept, kept @ atoms, best_loss, curve)


def decompose(
    v: Tensor, dictionary: Dictionary, inject: Inject, loss_fn: Callable[[Tensor], Tensor], how: str = "encoder", k: int = 10
) -> CleanedVector:  # fmt: skip
    """What `clean_vector` is compared with: a code of `v` that does not look at the loss.

    Args:
        v, dictionary, inject, loss_fn: as for `clean_vector`.
        how: "encoder" and "nnls" as its starts, or "pursuit" (`k` steps of gradient pursuit); "raw" is `v` itself.
        k: latents of the pursuit, at most.

    Returns:
        Its code (empty for "raw"), vector and loss.

    Raises:
        ValueError: as for `clean_vector`.
    """
    atoms = written(dictionary).detach()
    if how == "pursuit":
        theta = gradient_pursuit(v[None].to(atoms), atoms, k)[0]
    else:
        theta = atoms.new_zeros(len(atoms)) if how == "raw" else _start(v, dictionary, how)
    vector = v.to(atoms) if how == "raw" else theta @ atoms
    with torch.no_grad():
        return CleanedVector(theta, vector, float(loss_fn(inject(vector))))


@torch.no_grad()
def _start(v: Tensor, dictionary: Dictionary, init: str) -> Tensor:
    if v.shape != (dictionary.d,):
        raise ValueError(
            f"The vector has shape {list(v.shape)}; give one vector [{dictionary.d}], as this dictionary reads."
        )
    if dictionary.signed:
        raise ValueError(
            f"{dictionary.family!r} has codes of both signs; cleaning wants a dictionary whose codes are not negative."
        )
    if init == "encoder":
        return torch.relu(dictionary.pre(dictionary._accept(v)))
    if init == "nnls":
        atoms = written(dictionary)
        return nonnegative_codes((atoms @ v.to(atoms))[None], atoms @ atoms.T)[0].to(atoms)
    raise ValueError(f"{init!r} is unknown; use 'encoder' or 'nnls' (or 'pursuit' and 'raw' to compare with).")


def _places(model: Backbone, roles: Sequence[str]) -> Tensor:
    found = torch.tensor([role in roles for role in model.token_roles])
    if not found.any():
        raise ValueError(f"No token has a role of {list(roles)}; this model's are {sorted(set(model.token_roles))}.")
    return found


@torch.no_grad()
def displacement(
    adapted: AdaptedBackbone, images, site: str, roles: Sequence[str] = ("patch",), batch_size: int = 64
) -> Tensor:
    """Where an adaptation moves tokens, `mean(h_adapted - h_base)` over images and tokens, `[d]`.

    Args:
        adapted: the model and, in it, its base.
        images: of one class, or any.
        site: of the vision tower, with tokens.
        roles: of the tokens that are averaged; prompts have no counterpart in the base.
        batch_size: images a forward pass.

    Raises:
        ValueError: where no token has such a role.
    """
    chosen = _places(adapted.original, roles)
    total, count = 0.0, 0
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        before = adapted.original.tokens(part, site)
        moved = (adapted.tokens(part, site)[:, : before.shape[1]] - before)[:, chosen].flatten(0, 1)
        total, count = total + moved.sum(0), count + len(moved)
    return total / count


def injector(model: Backbone, images, head: Head, site: str, roles: Sequence[str] = ("patch",)) -> Inject:
    """A function from a vector `[d]` to the class logits `[N, C]` of images with it added at a site.

    Args:
        model: the base.
        images: as for `encode_image`, few enough for one forward pass.
        head: such as `model.head(class_names)`.
        site: of the vision tower, with tokens; roles: of the tokens it is added to.
    """
    pixels, chosen = model.pixels(images), _places(model, roles)

    def inject(vector: Tensor) -> Tensor:
        with model.edit(site, lambda tokens: tokens + chosen.to(tokens)[:, None] * vector.to(tokens)):
            return head(F.normalize(model.forward_image(pixels).float(), dim=-1))

    return inject
