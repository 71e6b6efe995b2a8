"""Where training starts: the weights, the decoder bias, and the variance of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, initial_atoms
from vlsae.training.config import TrainConfig
from vlsae.training.recipe import constructor_arguments
from vlsae.training.team import Team


def initial_dictionary(config: TrainConfig, d: int, team: Team) -> Dictionary:
    """A dictionary of the recipe's family with the latents that this process has."""
    family, arguments = DICTIONARIES.get(config.family), constructor_arguments(config)
    if team.shards == 1:
        return family(d, config.n_latents, seed=config.seed, **arguments)
    if config.n_latents < team.shards or ("k" in arguments and config.k > config.n_latents):
        raise ValueError(
            f"n_latents={config.n_latents} with k={config.k} in {team.shards} parts: give at least one latent a part, and k "
            "at most n_latents."
        )
    own = team.own_latents(config.n_latents)
    n = own.stop - own.start
    if "k" in arguments:
        arguments["k"] = min(config.k, n)
    part = family(d, n, seed=config.seed, **arguments)
    if "k" in arguments:
        part.k = config.k
    if family._init_weights is Dictionary._init_weights:
        atoms = initial_atoms(torch.Generator().manual_seed(config.seed), config.n_latents, d, own)
        part.W_dec.data.copy_(atoms)
        part.W_enc.data.copy_(atoms.T)
    else:  # a start of its own: every process makes the whole once
        whole = family(d, config.n_latents, seed=config.seed, **arguments)
        part.W_dec.data.copy_(whole.W_dec.data[own])
        part.W_enc.data.copy_(whole.W_enc.data[:, own])
    return part


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to `x [N, d]`, by Weiszfeld's iteration.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round().item()
        1.0
    """
    point = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-8)
        nearer = (weights[:, None] * x).sum(0) / weights.sum()
        if (nearer - point).norm() <= tolerance * (1 + point.norm()):
            return nearer
        point = nearer
    return point


def initial_bias(sample: Tensor, kind: str) -> Tensor:
    """`b_dec` before the first step: "geometric_median" or "mean" of a sample `[N, d]`, or 0 ("zeros", "none")."""
    if kind in ("zeros", "none"):
        return torch.zeros(sample.shape[1])
    return geometric_median(sample) if kind == "geometric_median" else sample.mean(0)


def total_variance(sample: Tensor) -> float:
    """`E||x - mean||^2`."""
    return float((sample - sample.mean(0)).square().sum(1).mean())
