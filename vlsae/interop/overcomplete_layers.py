"""What the layers of the library `overcomplete` compute, as plain matrices, in double precision."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from vlsae.interop.dialect import DialectError
from vlsae.interop.modules import SavedModule

NORMALIZATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")
EPSILON = 1e-8  # added to norms and sums there
ROWS = 256  # that are in double precision at a time
LOG_AT_MOST = 80.0  # float32 ends at exp(88)
BATCH_NORM_EPSILON = 1e-5  # torch's default, which its encoders keep
REFUSED = {  # parts of an encoder, and why no family of ours has them
    "mlp_blocks": "hidden layers",
    "resnet_blocks": "convolutions over the image",
    "attention_blocks": "attention between tokens",
    "final_block": "a normalisation of each token over all latents (layer norm)",
    "1": "a normalisation of each token over all latents (layer norm)",
}


def normalised(weights: Tensor, how: str, scale: Tensor) -> Tensor:
    """Rows of `weights [n, d]` after one of `NORMALIZATIONS`, each by its own norm or all by the largest one, times `scale`.

    Computed in double precision, a few rows at a time, and rounded once.
    """
    parts, p = weights.split(ROWS), 1 if how.endswith("l1") else 2
    norms = torch.ones(len(weights), 1, dtype=torch.float64)
    if how != "identity":
        for norm, rows in zip(norms.split(ROWS), parts, strict=True):
            norm.copy_(rows.double().norm(p=p, dim=1, keepdim=True))
        norms = norms.amax().expand_as(norms) if how.startswith("max") else norms + EPSILON
    done = torch.empty_like(weights)
    for into, rows, norm in zip(done.split(ROWS), parts, norms.split(ROWS), strict=True):
        into.copy_(rows.double() / norm * scale)
    return done


def is_archetypal(module: SavedModule, layer: str) -> bool:
    """Whether a dictionary layer makes its atoms of points."""
    return module.has(*(f"{layer}.{name}" for name in ("W", "Relax", "C")))


def archetypal(module: SavedModule, layer: str, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mixture `[n, n_candidates]`, relaxation `[n, d]` and candidates `[n_candidates, d]` as the next forward pass has them.

    A file that was written after an optimiser step holds mixtures off the simplex and relaxations that are too long.
    """
    mixture, relaxation, points = (module.tensor(f"{layer}.{name}").double() for name in ("W", "Relax", "C"))
    matrices = mixture.ndim == relaxation.ndim == points.ndim == 2 and mixture.shape[1] == len(points)
    if not matrices or relaxation.shape != (len(mixture), points.shape[1]):
        raise DialectError(
            f"{module.source.weights}: {layer}.W, Relax and C have shapes {list(mixture.shape)}, {list(relaxation.shape)} and "
            f"{list(points.shape)}; expected [n, candidates], [n, d] and [candidates, d]."
        )
    mixture = torch.relu(mixture)
    mixture = mixture / (mixture.sum(1, keepdim=True) + EPSILON)
    norms = relaxation.norm(dim=1, keepdim=True)
    return mixture, relaxation * (delta / norms.clamp_min(1e-300)).clamp_max(1.0), points


def log_scale(module: SavedModule, layer: str) -> Tensor:
    """The logarithm of what all atoms are multiplied with; 0 before releases that have it."""
    name = f"{layer}.multiplier"
    value = module.number(name) if name in module.shapes else 0.0
    if abs(value) > LOG_AT_MOST:
        raise DialectError(
            f"{module.source.weights}: {name} is {value:.3g}, and atoms are multiplied with its exponential."
        )
    return torch.tensor([value], dtype=torch.float64)


def atoms(module: SavedModule, layer: str, normalization: str | None, delta: float | None) -> Tensor:
    """The dictionary `[n, d]` that a dictionary layer decodes with."""
    scale = log_scale(module, layer).exp()
    if not is_archetypal(module, layer):
        return normalised(raw_weights(module, layer), normalization, scale)
    mixture, relaxation, points = archetypal(module, layer, delta)
    return (mixture @ points + relaxation) * scale


def raw_name(module: SavedModule, layer: str) -> str:
    """The name of a plain dictionary layer's weights, which was another before release 0.1."""
    return f"{layer}._weights" if module.has(f"{layer}._weights") else f"{layer}.dictionary"


def raw_weights(module: SavedModule, layer: str) -> Tensor:
    """The weights of a plain dictionary layer, `[n, d]`, as they stand in the file."""
    name = raw_name(module, layer)
    weights = module.tensor(name).float()
    if weights.ndim != 2 or not weights.numel():
        raise DialectError(f"{module.source.weights}: {name} has shape {list(weights.shape)}; expected [n_latents, d].")
    return weights


def encoder(module: SavedModule, tied_to: Tensor | None) -> tuple[Tensor, Tensor]:
    """`W_enc [d, n]` and `b_enc [n]` of an encoder that is linear, with a batch norm behind it or none.

    Args:
        module: the whole model.
        tied_to: `[n, d]`, the dictionary whose transpose a tied encoder is.

    Raises:
        DialectError: for an encoder that does more.
    """
    left = {name for name in module.shapes if name.startswith("encoder.") and not name.startswith("encoder.tied_to.")}
    base = "encoder.final_block" if module.has("encoder.final_block.0.weight") else "encoder"
    linear = f"{base}.0" if module.has(f"{base}.0.weight") else "encoder"
    W = tied_to if tied_to is not None else module.tensor(f"{linear}.weight").float()
    b = module.tensor(f"{linear}.bias").float() if module.has(f"{linear}.bias") else W.new_zeros(W.shape[:1])
    left -= {f"{linear}.weight", f"{linear}.bias"}
    if W.ndim != 2 or b.shape != W.shape[:1]:
        raise DialectError(
            f"{module.source.weights}: the encoder has weights {list(W.shape)} and a bias {list(b.shape)}; expected [n, d] "
            "and [n]."
        )
    if module.has(f"{base}.1.running_mean"):
        gain, shift, mean, variance = (part.double() for part in batch_norm(module, f"{base}.1", len(W)))
        scale = gain / (variance + batch_norm_epsilon(module, f"{base}.1")).sqrt()
        W, b = W.double() * scale[:, None], (b.double() - mean) * scale + shift
        left = {name for name in left if not name.startswith(f"{base}.1.")}
    if left:
        reasons = {REFUSED.get(name.split(".")[1], f"a part named {name.split('.')[1]!r}") for name in left}
        raise DialectError(
            f"{module.source.weights}: its encoder has {' and '.join(sorted(reasons))} ({', '.join(sorted(left)[:3])}, ...); "
            "only encoders that are linear, with a batch norm or without, are read. Train one with encoder_module='linear'."
        )
    return W.T, b


def batch_norm(module: SavedModule, layer: str, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gain, shift, running mean and running variance of a batch norm over `n` latents, `[n]` each."""
    parts = [module.tensor(f"{layer}.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
    if any(part.shape != (n,) for part in parts) or (parts[-1] < 0).any():
        raise DialectError(
            f"{module.source.weights}: {layer} holds shapes {[list(part.shape) for part in parts]} or a negative variance; "
            f"expected four vectors of {n:,} numbers."
        )
    return tuple(parts)


def batch_norm_epsilon(module: SavedModule, layer: str) -> float:
    """What is added to the variance; a state dict does not say it, and the library's own encoders keep torch's default."""
    kind, epsilon = module.kind(layer), module.value(f"{layer}.eps")
    if kind is None:
        return BATCH_NORM_EPSILON
    if kind != "BatchNorm1d" or not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise DialectError(f"{module.source.weights}: {layer} is {kind} with eps={epsilon!r}; expected a BatchNorm1d.")
    return epsilon


def span_positively(rows: Tensor) -> bool:
    """Whether no vector has negative correlations with all rows of `rows [n, d]` at once.

    By Gordan's theorem that is so just when some mixture of the rows is 0, which non-negative least squares looks for.
    """
    target = np.zeros(rows.shape[1] + 1)
    target[-1] = 1.0
    try:
        _, rest = nnls(np.vstack([rows.double().T.numpy(), np.ones(len(rows))]), target)
    except RuntimeError:  # it did not converge; then nothing is known
        return False
    return rest < 1e-9
