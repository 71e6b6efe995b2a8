"""What happens to activations before a dictionary sees them, kept with the dictionary and undone after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = ("none", "centre", "sqrt_d", "centre_sqrt_d", "scalar", "standardise", "unit", "layer_norm",
         "layer_norm_unbiased")  # fmt: skip
AFFINE = ("none", "centre", "sqrt_d", "centre_sqrt_d", "scalar", "standardise")


class InputTransform(nn.Module):
    """Activations on the scale a dictionary is trained at, and back.

    Fixed for the data, `x' = (x - mean) * scale`: "none"; "centre" (`x - mean`); "sqrt_d" (a constant makes
    `E||x'|| = sqrt(d)`, SAELens); "centre_sqrt_d" (both, what MSAE states); "scalar" (one
    mean and one deviation for all coordinates, USAE); "standardise" (each coordinate, RA-SAE).
    Of each token alone: "unit" (`x / ||x||`); "layer_norm" (zero mean and unit variance over its d values; Gao et al.
    divide by another `sqrt(d)`); "layer_norm_unbiased" (`(x - mean) / (std + 1e-5)` with the deviation that divides by d - 1,
    undone without the 1e-5: SAELens and ViT-Prisma).

    Args:
        d: width.
        kind: one of the above.

    Raises:
        ValueError: for another kind.

    Example:
        >>> unit = InputTransform(2, "unit")
        >>> unit(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """

    def __init__(self, d: int, kind: str = "none"):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"input_transform={kind!r} is unknown; use one of {', '.join(KINDS)}.")
        self.kind = kind
        self.affine = kind in AFFINE
        if self.affine and kind != "none":
            self.register_buffer("mean", torch.zeros(d))
            self.register_buffer("scale", torch.ones(d))

    @classmethod
    def fit(cls, sample: Tensor, kind: str) -> InputTransform:
        """The transform of a kind for data like `sample [N, d]`, on its device."""
        transform = cls(sample.shape[1], kind).to(sample.device)
        if "centre" in kind or kind == "standardise":
            transform.mean.copy_(sample.mean(0))
        elif kind == "scalar":
            transform.mean.fill_(sample.mean())
        if transform.affine and kind != "none":
            centred = sample - transform.mean
            if kind == "standardise":
                transform.scale.copy_(1 / centred.std(0, correction=0).clamp_min(1e-6))
            elif kind == "scalar":
                transform.scale.fill_(1 / (centred.std() + 1e-5))
            elif kind != "centre":
                transform.scale.fill_(sample.shape[1] ** 0.5 / centred.norm(dim=1).mean())
        return transform

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., d]` as the dictionary sees it."""
        if self.kind == "none":
            return x
        if self.affine:
            return (x - self.mean) * self.scale
        shift, size = self._of_token(x)
        return (x - shift) / (size + 1e-5 if self.kind == "layer_norm_unbiased" else size)

    def inverse(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        """Back to the units of the activations; for transforms of each token, with the norms of `like [..., d]`.

        Raises:
            ValueError: where `like` is needed and missing.
        """
        if self.kind == "none":
            return x
        if self.affine:
            return x / self.scale + self.mean
        if like is None:
            raise ValueError(
                f"This dictionary works on tokens after {self.kind!r}: codes alone do not say how long the token was; "
                "give decode(z, like=x) the activations, or call the dictionary itself."
            )
        shift, size = self._of_token(like.to(x))
        return x * size + shift

    def _of_token(self, x: Tensor) -> tuple[Tensor | float, Tensor]:
        if self.kind == "unit":
            return 0.0, x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        if self.kind == "layer_norm_unbiased":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return x.mean(-1, keepdim=True), (x.var(-1, keepdim=True, correction=0) + 1e-10).sqrt()

    def extra_repr(self) -> str:
        return self.kind
