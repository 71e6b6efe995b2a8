"""VAEase (Lu et al. 2025): a variational autoencoder whose latents switch themselves off, input by input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace

SMALLEST = 1e-7  # variance


@DICTIONARIES.register("vaease")
class VAEaseDictionary(Dictionary):
    """`z = (1 - sigma(x)) mu(x)`, in training `(1 - sigma) (mu + sigma eps)`, and `xhat = z W_dec + b_dec`.

    A latent whose standard deviation is 1 costs nothing and says nothing; one at 0 is fully on. Which ones are on is
    decided by each input, without a weight of sparsity. Codes have both signs. Arxiv 2506.04859, with the encoders of
    its released code. Shallow, for wide activations: `h = SiLU(x W + b)`, its first half `mu`, its second half through
    a linear map and a sigmoid the variance; such a `mu` hardly gets negative, so a direction of both signs takes two
    latents. Deep, `hidden > 0`: four linear layers, the last of which gives `mu` and `log sigma^2`, cut at 0.

    Args:
        d: width of the activations.
        n_latents: number of latents.
        hidden: width of the deep encoder's layers; 0 for the shallow one.
        log_gamma: first value of the learned log variance of the reconstruction.
        gated: without the gate `1 - sigma` this is a plain variational autoencoder.
        seed: of weights and noise.

    Example:
        >>> sae = VAEaseDictionary(d=4, n_latents=8)
        >>> sae.variance(torch.randn(5, 4)).max().item() <= 1
        True
    """

    family = "vaease"
    objectives = ("elbo",)
    dead_policy = "none"
    unit_atoms = False
    homogeneous = False
    signed = True

    def __init__(
        self, d: int, n_latents: int, *, hidden: int = 0, log_gamma: float = -0.5, gated: bool = True, seed: int = 0
    ):
        self.hidden, self.gated, self.seed = hidden, gated, seed
        super().__init__(d, n_latents, seed=seed)
        self.log_gamma = nn.Parameter(torch.tensor([float(log_gamma)]))
        self.register_buffer("draws", torch.zeros(1, dtype=torch.long))  # saved, so that a resumed run draws on

    def _init_weights(self, generator: torch.Generator) -> None:
        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / shape[0] ** 0.5)

        d, n, h = self.d, self.n_latents, self.hidden
        shapes = [(d, h), (h, h), (h, h), (h, 2 * n)] if h else [(d, 2 * n), (n, n)]
        self.weights = nn.ParameterList(uniform(*shape) for shape in shapes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(shape[1])) for shape in shapes)
        if h:
            self.biases[-1].data[n:] = -3.0  # every latent starts on: where sigma is cut at 1 there is no gradient
        self.W_dec, self.b_dec = uniform(n, self.d), nn.Parameter(torch.zeros(self.d))

    @property
    def settings(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "gated": self.gated}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every latent, `[..., n_latents]` each, for inputs behind the transform."""
        x = x - self.b_dec
        if not self.hidden:
            mu, rest = F.silu(x @ self.weights[0] + self.biases[0]).chunk(2, dim=-1)
            return mu, torch.sigmoid(rest @ self.weights[1] + self.biases[1]).clamp_min(SMALLEST)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(x @ weight + bias)
        mu, log_variance = (x @ self.weights[-1] + self.biases[-1]).chunk(2, dim=-1)
        return mu, log_variance.clamp_max(0.0).exp().clamp_min(SMALLEST)

    def variance(self, x: Tensor) -> Tensor:
        """Variances `[..., n_latents]` of activations `[..., d]`: near 1 where a latent is off, near 0 where on."""
        return self.posterior(self.transform(x.to(self.W_dec.dtype)))[1]

    def _gate(self, z: Tensor, variance: Tensor) -> Tensor:
        return (1 - variance.sqrt()) * z if self.gated else z

    def _encode(self, x: Tensor) -> Tensor:
        return self._gate(*self.posterior(x))

    def trace(self, x: Tensor) -> Trace:
        mu, variance = self.posterior(x)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.draws))
        self.draws += 1
        noise = torch.randn(mu.shape, generator=generator).to(mu)
        z = self._gate(mu + variance.sqrt() * noise, variance)
        return Trace(mu, z, self._decode(z), {"mu": mu, "variance": variance})
