"""A model's own feed-forward layer as a dictionary: keys that read, values that write."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": torch.relu,
}

LAYOUTS = (  # keys, second keys of a gated layer, activation, values
    ("c_fc", None, "gelu", "c_proj"),
    ("fc1", None, "activation_fn", "fc2"),
    ("gate_proj", "up_proj", "act_fn", "down_proj"),
)


@DICTIONARIES.register("feed_forward")
class FeedForwardKV(Dictionary):
    """`z = phi(x W_enc + b_enc)` of a trained MLP; `z W_dec + b_dec` is its output, exactly (arXiv 2510.22332).

    Trained at `mlp_in`, it gives `mlp_out`: a transcoder that needs no training. Gated layers multiply by
    `x W_up + b_up`. GELU and SiLU go a little below zero, so codes have both signs: a latent's firing is `z != 0`
    almost everywhere, and TopK by value differs from TopK by magnitude.

    Args:
        d: width of the layer's input and output.
        n_latents: its hidden width.
        activation: "gelu", "gelu_tanh", "quick_gelu", "silu" or "relu".
        gated: whether a second key matrix multiplies (LLaMA's SwiGLU).
        topk: keep that many codes a token; all where 0.
        by_magnitude: keep the largest `|z|` instead of the largest `z`.
        seed: of random weights; use `from_module` for a model's.

    Raises:
        ValueError: for an unknown activation, or an impossible `topk`.

    Example:
        >>> mlp = nn.Sequential()
        >>> mlp.fc1, mlp.activation_fn, mlp.fc2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(FeedForwardKV.from_module(mlp)(x), mlp.fc2(F.gelu(mlp.fc1(x))), atol=1e-6)
        True
    """

    family = "feed_forward"
    trainable = False
    made_by = "FeedForwardKV.from_module(block.mlp) from the model itself"
    unit_atoms = False
    homogeneous = False
    signed = True

    def __init__(
        self, d: int, n_latents: int, *, activation: str = "gelu", gated: bool = False, topk: int = 0,
        by_magnitude: bool = False, seed: int = 0,
    ):  # fmt: skip
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")
        if not 0 <= topk <= n_latents:
            raise ValueError(f"topk={topk} must lie between 0 (all) and n_latents={n_latents}.")
        self.activation, self.gated, self.topk, self.by_magnitude = activation, gated, topk, by_magnitude
        super().__init__(d, n_latents, seed=seed)

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        self.register_buffer("norms", torch.ones(self.n_latents))
        if self.gated:
            self.W_up = nn.Parameter(torch.randn(self.d, self.n_latents, generator=generator) / self.d**0.5)
            self.b_up = nn.Parameter(torch.zeros(self.n_latents))

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("activation", "gated", "topk", "by_magnitude")}

    def reads(self, x: Tensor) -> Tensor:
        """The input as it is: the layer's last bias belongs to its output alone."""
        return x

    def _encode(self, x: Tensor) -> Tensor:
        z = ACTIVATIONS[self.activation](self.pre(x))
        if self.gated:
            z = z * (x @ self.W_up + self.b_up)
        z = z * self.norms
        if not self.topk:
            return z
        kept = (z.abs() if self.by_magnitude else z).topk(self.topk, dim=-1, sorted=False).indices
        return torch.zeros_like(z).scatter(-1, kept, z.gather(-1, kept))

    @torch.no_grad()
    def normalise(self) -> FeedForwardKV:
        """Bring every value to unit norm and move the norms into the codes; the output stays. Returns itself.

        TopK ranks latents by what they add to the output from then on.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-12)
        self.W_dec.div_(norms[:, None])
        self.norms.mul_(norms)
        return self

    @classmethod
    @torch.no_grad()
    def from_module(cls, mlp: nn.Module, topk: int = 0, by_magnitude: bool = False) -> FeedForwardKV:
        """The dictionary of a model's feed-forward module, with copies of its weights.

        Args:
            mlp: of open_clip (`c_fc`, `gelu`, `c_proj`), Hugging Face CLIP or SigLIP (`fc1`, `activation_fn`, `fc2`)
                or LLaMA (`gate_proj`, `up_proj`, `act_fn`, `down_proj`).
            topk, by_magnitude: as for the class.

        Raises:
            ValueError: for a module of another make, or an activation that is none of the known ones.
        """
        layout = next((names for names in LAYOUTS if hasattr(mlp, names[0]) and hasattr(mlp, names[-1])), None)
        if layout is None:
            found = ", ".join(name for name, _ in mlp.named_children())
            raise ValueError(f"{type(mlp).__name__} has the parts {found}; expected {' or '.join(map(str, LAYOUTS))}.")
        keys, up, act, values = (getattr(mlp, name, None) if name else None for name in layout)
        n, d = keys.weight.shape
        made = cls(
            d, n, activation=_name_activation(act), gated=up is not None, topk=topk, by_magnitude=by_magnitude
        ).to(keys.weight)
        made.W_enc.copy_(keys.weight.T)
        made.b_enc.copy_(0.0 if keys.bias is None else keys.bias)
        made.W_dec.copy_(values.weight.T)
        made.b_dec.copy_(torch.zeros(d) if values.bias is None else values.bias)
        if up is not None:
            made.W_up.copy_(up.weight.T)
            made.b_up.copy_(0.0 if up.bias is None else up.bias)
        return made.requires_grad_(False)


def _name_activation(function) -> str:
    """The name of an activation, found by what it does to numbers: models spell it in many ways."""
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for name, known in ACTIVATIONS.items():
        if torch.allclose(function(x), known(x), atol=1e-6):
            return name
    raise ValueError(f"The activation {function} is none of {', '.join(ACTIVATIONS)}; this layer cannot be read.")
