"""The contract of every dictionary: activations to sparse codes and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.hub_mixin import HubMixin
from vlsae.dictionaries.selection import Products, Rows
from vlsae.dictionaries.transform import InputTransform
from vlsae.registry import Registry

DICTIONARIES = Registry("dictionary", "vlsae.dictionaries")
BLOCK = 2**16  # initial atoms drawn at a time


def initial_atoms(generator: torch.Generator, n: int, d: int, own: slice = slice(None)) -> Tensor:
    """Rows `own` of `n` random unit vectors `[n, d]`; the others are drawn too, but not kept."""
    begin, end, _ = own.indices(n)
    if torch.get_default_device().type == "meta":  # shapes are all that is asked for, of any size
        return torch.empty(end - begin, d)
    cuts = [*range(0, max(1, n - 16), BLOCK), n]  # torch draws the same numbers in one call or in such pieces
    kept = []
    for lo, hi in pairwise(cuts):
        drawn = torch.randn(hi - lo, d, generator=generator)
        kept.append(drawn[max(begin - lo, 0) : max(end - lo, 0)])
    return F.normalize(torch.cat(kept), dim=1)


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

    @classmethod
    def from_rows(cls, rows: Rows, n_latents: int) -> Codes:
        """Codes as selection gives them."""
        return cls(rows.numbers, rows.idx.long(), rows.val, len(rows), n_latents)

    def times(self, W: Tensor) -> Tensor:
        """`z W` for `W [n_latents, d]`, without a dense `z`."""
        starts = torch.searchsorted(self.rows, torch.arange(self.n, device=self.rows.device))
        return F.embedding_bag(self.latents, W, starts, mode="sum", per_sample_weights=self.values)

    def columns(self, latents: Sequence[int] | Tensor) -> Tensor:
        """The codes of some latents as a dense `[n, len(latents)]`."""
        wanted = torch.as_tensor(latents, dtype=torch.long, device=self.rows.device)
        wanted, copies = wanted.unique(return_inverse=True)
        place = self.latents.new_full((self.n_latents,), -1)
        place[wanted] = torch.arange(len(wanted), device=place.device)
        at = place[self.latents]
        z = self.values.new_zeros(self.n, len(wanted))
        z[self.rows[at >= 0], at[at >= 0]] = self.values[at >= 0]
        return z[:, copies]

    def peaks(self) -> Tensor:
        """The largest code of every latent, `[n_latents]`; 0 where it is silent or only negative."""
        return self.values.new_zeros(self.n_latents).scatter_reduce(0, self.latents, self.values, "amax")

    def dense(self) -> Tensor:
        """The same as `[n, n_latents]`."""
        z = self.values.new_zeros(self.n, self.n_latents)
        z[self.rows, self.latents] = self.values
        return z


@dataclass
class Trace:
    """What a forward pass in training leaves for the objectives.

    Attributes:
        pre: `[B, n_latents]` pre-activations, or what plays their part in a family without a linear encoder.
        z: `[B, n_latents]` codes.
        xhat: `[B, d]` reconstruction.
        extras: tensors of this family only, by name (a router's probabilities, a gate's activations, ...).
    """

    pre: Tensor
    z: Tensor
    xhat: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Dictionary(HubMixin, nn.Module):
    """Encoder, activation and atoms: `z = act((x - b_dec) W_enc + b_enc)`, `xhat = z W_dec + b_dec`.

    A family names itself (`family`), lists the arguments of its constructor that change the forward pass in
    `settings`, and defines `activate`; one without a linear encoder overrides `_encode` and `trace` instead. Every
    family has `W_dec` and `b_dec`, as parameters, buffers or properties. The encoder starts as the atoms.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        seed: of the initial weights.

    Attributes:
        W_enc: `[d, n_latents]`; b_enc: `[n_latents]`; W_dec: `[n_latents, d]`, rows are atoms of unit norm;
            b_dec: `[d]`.
        transform: what happens to activations first (`InputTransform`); `encode` and `decode` speak the units of the
            activations, `pre`, `trace`, `_encode` and `_decode` those behind the transform.
        metadata: site, model, data and recipe it was trained with; saved with the weights.
    """

    family: str
    trainable = True
    made_by = ""  # how a family that is not trained is made, for the message of `train`
    objectives: tuple[str, ...] = ("reconstruction",)  # terms of the loss, by their names in vlsae.training.objectives
    dead_policy = "auxk"  # what training does about dead latents unless told otherwise
    unit_atoms = True  # whether training keeps every atom at unit norm
    homogeneous = True  # whether act(s pre) = s act(pre) for s > 0, so that an input scale folds into the biases
    signed = False  # whether codes have both signs
    bimodal = False  # whether `trace` also takes the modality of each row, and data must say it
    start_sample = 8192  # vectors that training gives to `prepare`, at most
    latent_axis: ClassVar = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0}  # of tensors that have one

    def __init__(self, d: int, n_latents: int, *, seed: int = 0):
        super().__init__()
        if d < 1 or n_latents < 1:
            raise ValueError(f"d={d} and n_latents={n_latents} must be at least 1.")
        self.d, self.n_latents = d, n_latents
        self.metadata: dict[str, Any] = {}
        self.transform = InputTransform(d)
        self._init_weights(torch.Generator().manual_seed(seed))

    def _init_weights(self, generator: torch.Generator) -> None:
        atoms = initial_atoms(generator, self.n_latents, self.d)
        self.W_enc = nn.Parameter(atoms.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.W_dec = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(torch.zeros(self.d))

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
        return self.reads(x) @ self.W_enc + self.b_enc

    def reads(self, x: Tensor) -> Tensor:
        """What the encoder's columns are multiplied with: `x - b_dec`."""
        return x - self.b_dec

    def encode(self, x: Tensor) -> Tensor:
        """Codes of activations.

        Args:
            x: `[..., d]`, finite; any floating dtype, computed in the dictionary's own.

        Returns:
            `[..., n_latents]`.

        Raises:
            ValueError: for another width, or values that are not finite.
        """
        return self._encode(self._accept(x))

    def _accept(self, x: Tensor) -> Tensor:
        """Activations behind the transform, after a look at their shape and values."""
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"Activations have shape {tuple(x.shape)}; this dictionary reads [..., {self.d}].")
        if not torch.isfinite(x).all():
            raise ValueError("Activations hold NaN or infinite values; check the model, or extract with float32.")
        return self.transform(x.to(self.W_dec.dtype))

    def _encode(self, x: Tensor) -> Tensor:
        return self.activate(self.pre(x))

    def trace(self, x: Tensor) -> Trace:
        """The forward pass of training on `x [B, d]`; may differ from `encode` (batch-wide choices, noise)."""
        pre = self.pre(x)
        z = self.activate(pre)
        return Trace(pre, z, self._decode(z))

    def prepare(self, sample: Tensor) -> None:
        """Called once before training with a sample `[N, d]`, for a start that depends on the data."""

    @torch.no_grad()
    def encode_sparse(self, x: Tensor, selection: str = "float32") -> Codes:
        """Codes of `x [..., d]` as parallel lists, rows in the order of `x.flatten(0, -2)`.

        TopK, BatchTopK and ReLU families choose from blocks of pre-activations that are not kept: memory grows with the
        active codes alone. Others make dense codes first.

        Args:
            x: as for `encode`.
            selection: "bfloat16" finds candidates in a rounded product and computes their values in float32, where the
                family can; else "float32".
        """
        if selection not in ("float32", "bfloat16"):
            raise ValueError(f"selection={selection!r} is unknown; use 'float32' or 'bfloat16'.")
        x = x.reshape(-1, x.shape[-1])
        rows = None
        if self.W_dec.dtype == torch.float32 and self.can_pick:
            keys = self.keys()
            rounded = keys.bfloat16() if selection == "bfloat16" else None
            rows = self.pick(Products(self.reads(self._accept(x)).contiguous(), keys, self.b_enc.data, rounded))
        return Codes.from_dense(self.encode(x)) if rows is None else Codes.from_rows(rows, self.n_latents)

    @property
    def can_pick(self) -> bool:
        """Whether `pick` can be used."""
        return False

    def pick(self, products: Products) -> Rows:
        """The codes that `activate` gives, from products of `reads(x)` with the encoder's columns."""
        raise NotImplementedError

    def keys(self) -> Tensor:
        """The encoder's columns as contiguous rows `[n_latents, d]`, sharing memory with `W_enc`."""
        if not self.W_enc.T.is_contiguous():
            self.W_enc.data = self.W_enc.data.T.contiguous().T
        return self.W_enc.data.T

    def decode(self, z: Tensor | Codes, like: Tensor | None = None) -> Tensor:
        """Reconstruction `z W_dec + b_dec`, `[..., d]`, in the units of the activations.

        Args:
            z: codes, `[..., n_latents]`.
            like: the activations `[..., d]` that the codes are of; only needed behind a transform of each token.

        Raises:
            ValueError: for another number of latents, or a missing `like`.
        """
        if isinstance(z, Codes):
            if type(self)._decode is Dictionary._decode:
                return self.transform.inverse(z.times(self.W_dec) + self.b_dec, like)
            z = z.dense()
        if z.shape[-1:] != (self.n_latents,):
            raise ValueError(f"Codes have shape {tuple(z.shape)}; this dictionary decodes [..., {self.n_latents}].")
        return self.transform.inverse(self._decode(z), like)

    def _decode(self, z: Tensor) -> Tensor:
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of `x`."""
        return self.decode(self.encode(x), like=x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction of `x [..., d]` from sparse codes: as `forward`, without gradients and dense codes."""
        flat = x.reshape(-1, x.shape[-1])
        return self.decode(self.encode_sparse(flat), like=flat).reshape(*x.shape[:-1], self.d)

    @torch.no_grad()
    def constrain_gradient(self) -> None:
        """Before an optimiser step: take out of the atoms' gradient what would only change their norm."""
        if self.unit_atoms:
            along = torch.einsum("nd,nd->n", self.W_dec.grad, self.W_dec)  # neither step makes another [n, d]
            self.W_dec.grad.addcmul_(along[:, None], self.W_dec, value=-1)

    def constrain(self) -> None:
        """After an optimiser step: bring the weights back to where they are allowed to be."""
        if self.unit_atoms:
            self.normalise_atoms()

    @torch.no_grad()
    def normalise_atoms(self) -> None:
        """Give every atom unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Undo a training input scale: after this, `x` gives what `x * scale` gave, divided by `scale`.

        Exact for positively homogeneous families (ReLU, TopK): codes and reconstruction shrink alike.

        Raises:
            ValueError: for a family that is not homogeneous.
        """
        if not self.homogeneous:
            raise ValueError(f"A scale cannot be folded into {self.family!r}: its codes do not scale with its input.")
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)

    @torch.no_grad()
    def fold_transform(self) -> None:
        """Work the input transform into the weights: the reconstruction stays, codes come in the activations' units.

        Raises:
            ValueError: where that cannot be exact: a transform of each token or each coordinate, or a family whose
                codes do not scale with its input.
        """
        transform = self.transform
        if transform.kind == "none":
            return
        if not transform.affine or transform.kind == "standardise":
            raise ValueError(f"The transform {transform.kind!r} cannot be folded into weights; keep it as it is.")
        if not isinstance(self.b_dec, nn.Parameter):
            raise ValueError(f"{self.family!r} has no decoder bias that could take a transform; keep it as it is.")
        if transform.kind != "centre":
            self.fold_scale(float(transform.scale[0]))
        self.b_dec.add_(transform.mean)
        self.transform = InputTransform(self.d)

    def save(self, folder: str | Path) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors`; returns the folder."""
        from vlsae.dictionaries.checkpoint import save_dictionary

        return save_dictionary(self, folder)

    def extra_repr(self) -> str:
        settings = "".join(f", {k}={v}" for k, v in self.settings.items())
        return f"d={self.d}, n_latents={self.n_latents}{settings}"
