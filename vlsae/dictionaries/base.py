"""The contract of every dictionary: activations to sparse codes and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.registry import Registry

DICTIONARIES = Registry("dictionary", "vlsae.dictionaries")


@dataclass(frozen=True)
class Codes:
    """Sparse codes of `n` vectors: parallel lists of row, latent and value, sorted by row.

    Example:
        >>> codes = Codes.from_dense(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> codes.rows.tolist(), codes.latents.tolist(), codes.values.tolist()
        ([0], [1], [2.0])
    """

    rows: Tensor
    latents: Tensor
    values: Tensor
    n: int
    n_latents: int

    @classmethod
    def from_dense(cls, z: Tensor) -> Codes:
        """Codes of a dense `[n, n_latents]` tensor."""
        rows, latents = z.nonzero(as_tuple=True)
        return cls(rows, latents, z[rows, latents], *z.shape)

    def dense(self) -> Tensor:
        """The same as `[n, n_latents]`."""
        z = self.values.new_zeros(self.n, self.n_latents)
        z[self.rows, self.latents] = self.values
        return z


class Dictionary(nn.Module):
    """Encoder, activation and atoms: `z = act((x - b_dec) W_enc + b_enc)`, `xhat = z W_dec + b_dec`.

    Sub-classes name their `family`, define `activate`, and list what changes their forward pass in `settings`. The
    encoder starts as the atoms.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        seed: of the initial weights.

    Attributes:
        W_enc: `[d, n_latents]`; b_enc: `[n_latents]`; W_dec: `[n_latents, d]`, rows are atoms of unit norm;
            b_dec: `[d]`.
        metadata: site, model, data and recipe it was trained with; saved with the weights.
    """

    family: str
    trainable = True
    takes: tuple[str, ...] = ()  # fields of TrainConfig that the constructor wants
    penalised = False  # whether sparsity comes from an L1 term

    def __init__(self, d: int, n_latents: int, *, seed: int = 0):
        super().__init__()
        if d < 1 or n_latents < 1:
            raise ValueError(f"d={d} and n_latents={n_latents} must be at least 1.")
        self.d, self.n_latents = d, n_latents
        generator = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(n_latents, d, generator=generator), dim=1)
        self.W_enc = nn.Parameter(atoms.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_dec = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.metadata: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments beyond `d` and `n_latents` that change the forward pass."""
        return {}

    @property
    def atoms(self) -> Tensor:
        """The dictionary, `[n_latents, d]`, one atom a row."""
        return self.W_dec.detach()

    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations to codes, `[..., n_latents]` each."""
        raise NotImplementedError

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations `(x - b_dec) W_enc + b_enc`, `[..., n_latents]`."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Codes of activations.

        Args:
            x: `[..., d]`, finite; any floating dtype, computed in the dictionary's own.

        Returns:
            `[..., n_latents]`.

        Raises:
            ValueError: for another width, or values that are not finite.
        """
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"Activations have shape {tuple(x.shape)}; this dictionary reads [..., {self.d}].")
        if not torch.isfinite(x).all():
            raise ValueError("Activations hold NaN or infinite values; check the model, or extract with float32.")
        return self.activate(self.pre(x.to(self.W_enc.dtype)))

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Codes:
        """Codes of `x [..., d]` as parallel lists, rows in the order of `x.flatten(0, -2)`."""
        return Codes.from_dense(self.encode(x.reshape(-1, x.shape[-1])))

    def decode(self, z: Tensor | Codes) -> Tensor:
        """Reconstruction `z W_dec + b_dec`, `[..., d]`.

        Raises:
            ValueError: for another number of latents.
        """
        if isinstance(z, Codes):
            z = z.dense()
        if z.shape[-1:] != (self.n_latents,):
            raise ValueError(f"Codes have shape {tuple(z.shape)}; this dictionary decodes [..., {self.n_latents}].")
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of `x`."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def normalise_atoms(self) -> None:
        """Give every atom unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Undo a training input scale: after this, `x` gives what `x * scale` gave, divided by `scale`.

        Exact for positively homogeneous activations (ReLU, TopK): codes and reconstruction shrink alike.
        """
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)

    def save(self, folder: str | Path) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors`; returns the folder."""
        from vlsae.dictionaries.checkpoint import save_dictionary

        return save_dictionary(self, folder)

    def extra_repr(self) -> str:
        settings = "".join(f", {k}={v}" for k, v in self.settings.items())
        return f"d={self.d}, n_latents={self.n_latents}{settings}"
