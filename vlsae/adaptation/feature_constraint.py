"""Keep concepts where they are while a model is tuned: a penalty on the drift of a dictionary's codes, and FPO's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.adaptation.adaptation import TuningBatch
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.backbones.base import Backbone
from vlsae.dictionaries.base import Dictionary


def pooled_codes(dictionary: Dictionary, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean codes `[B, n_latents]` of tokens `[B, T, d]`, of those where `mask [B, T]` is true.

    Raises:
        ValueError: where a row of the mask has no token.
    """
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    counts = mask.sum(1, keepdim=True)
    if not counts.all():
        raise ValueError("A row of the mask has no token; leave such samples out.")
    codes = dictionary.encode(torch.where(mask[..., None], tokens, 0.0))
    return (codes * mask[..., None]).sum(1) / counts


class FeatureConstraint:
    """`delta = mean over the k strongest latents of (c_ref - c)^2`, c the mean codes of a sample's tokens.

    The strongest are the tuned model's, as in FPO (Yin et al. 2025, arXiv 2411.07618).

    Args:
        dictionary: of the site; its weights stay as they are.
        site: of the vision tower, with tokens.
        k: latents that count; all that are protected where there are fewer.
        latents: the protected ones; all where None.
        roles: of the tokens that are pooled.

    Raises:
        ValueError: for `k` below 1.

    Example:
        >>> from vlsae.dictionaries.relu import ReLUDictionary
        >>> constraint = FeatureConstraint(ReLUDictionary(4, 8), "vision.-1.resid_post", k=2)
        >>> constraint.delta(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[3.0, 0.0, 0.0]])).tolist()
        [2.0]
    """

    def __init__(self, dictionary: Dictionary, site: str, k: int = 50, latents: Sequence[int] | None = None,
                 roles: Sequence[str] = ("patch",)):  # fmt: skip
        if k < 1:
            raise ValueError(f"k={k}: give one latent or more.")
        self.dictionary = copy.deepcopy(dictionary).requires_grad_(False)
        self.site, self.k, self.latents, self.roles = site, k, latents, tuple(roles)

    def codes(self, model: Backbone, pixels: Tensor) -> Tensor:
        """Pooled codes of the protected latents, `[B, L]`, with gradients to the model."""
        with model.capture(self.site) as found:
            model.forward_image(pixels)
        chosen = torch.tensor([role in self.roles for role in model.token_roles])
        codes = pooled_codes(self.dictionary, found[self.site][:, chosen])
        return codes if self.latents is None else codes[:, list(self.latents)]

    @torch.no_grad()
    def reference(self, model: Backbone, pixels: Tensor) -> Tensor:
        """`codes` of the model to stay close to, to be kept and used again."""
        return self.codes(model, pixels)

    def delta(self, codes: Tensor, reference: Tensor) -> Tensor:
        """The discrepancy of every sample, `[B]`."""
        strongest = codes.detach().topk(min(self.k, codes.shape[1]), dim=1).indices
        return (reference.gather(1, strongest) - codes.gather(1, strongest)).square().mean(1)

    def penalty(self, weight: float) -> Callable[[AdaptedBackbone, TuningBatch], Tensor]:
        """`weight * mean(delta)` to the base model, for `adapt(..., penalty=...)`."""

        def fn(adapted: AdaptedBackbone, batch: TuningBatch) -> Tensor:
            if batch.pixels is None:
                return torch.zeros((), device=adapted.device)  # the vision tower stays, and so do its codes
            reference = self.reference(adapted.original, batch.pixels)
            return weight * self.delta(self.codes(adapted, batch.pixels), reference).mean()

        return fn


def fpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    delta_chosen: Tensor,
    delta_rejected: Tensor,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """`-log sigmoid(beta [r_w - r_l - alpha (delta_l - stopgrad(delta_w))])`, the mean (Yin et al. 2025, arXiv 2411.07618).

    Args:
        chosen, rejected: margins to the reference model, `(log pi - log pi_ref) / length`, `[B]`.
        delta_chosen, delta_rejected: `FeatureConstraint.delta` of both, `[B]`.
        beta, alpha: of the paper; alpha 0 is length-normalised DPO.

    Example:
        >>> zero = torch.zeros(1)
        >>> round(fpo_loss(zero, zero, zero, zero).item(), 4)
        0.6931
    """
    return -F.logsigmoid(beta * (chosen - rejected - alpha * (delta_rejected - delta_chosen.detach()))).mean()
