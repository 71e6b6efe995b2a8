"""VL-SAE (Shen et al. 2025): one concept set for images and texts, with a decoder for each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Codes, Trace
from vlsae.dictionaries.distance import DistanceDictionary

MODALITIES = ("image", "text")


@DICTIONARIES.register("vl_sae")
class VLSAE(DistanceDictionary):
    """`z = TopK(2 - ||x^ - w^_i||)` for both modalities, `xhat_m = z W_dec_m + b_dec_m` for each of them.

    Train it on `TwoModalities`. The published loss (preset "vlsae") is the squared error of each modality and never uses
    the pairing; objectives "cross_reconstruction" and "matched_codes" do (preset "vlsae_paired"). `view(modality)` is a
    dictionary of one modality that shares these weights, for everything that takes a dictionary.
    arXiv 2510.21323.

    Args:
        d: width of the embeddings.
        n_latents: number of concepts.
        k: active latents a vector, 1 to `n_latents`.
        seed: of the initial weights.

    Attributes:
        W_dec, b_dec: the decoder of images; W_dec_text, b_dec_text: that of texts; W_enc: shared by both.

    Raises:
        ValueError: for an impossible `k`, or a modality other than "image" and "text".

    Example:
        >>> sae = VLSAE(d=4, n_latents=8, k=2)
        >>> z = sae.encode(torch.randn(5, 4))
        >>> sae.decode(z, modality="text").shape
        torch.Size([5, 4])
    """

    family = "vl_sae"
    bimodal = True
    latent_axis: ClassVar = {**DistanceDictionary.latent_axis, "W_dec_text": 0}

    def _init_weights(self, generator: torch.Generator) -> None:
        super()._init_weights(generator)
        self.W_dec_text = self._uniform(generator, self.n_latents, self.d, inputs=self.n_latents)
        self.b_dec_text = nn.Parameter(torch.zeros(self.d))

    @torch.no_grad()
    def prepare(self, sample: Tensor) -> None:
        """Both decoders start at the same bias."""
        self.b_dec_text.copy_(self.b_dec)

    def _decoder(self, modality: str) -> tuple[nn.Parameter, nn.Parameter]:
        if modality not in MODALITIES:
            raise ValueError(f"modality={modality!r} is unknown; use one of {', '.join(MODALITIES)}.")
        return (self.W_dec, self.b_dec) if modality == "image" else (self.W_dec_text, self.b_dec_text)

    def view(self, modality: str) -> DistanceDictionary:
        """The dictionary of one modality, which shares its weights with this one.

        Args:
            modality: "image" or "text".

        Raises:
            ValueError: for another modality.

        Example:
            >>> sae = VLSAE(d=4, n_latents=8, k=2)
            >>> torch.equal(sae.view("text").atoms, sae.W_dec_text)
            True
        """
        weights, bias = self._decoder(modality)
        side = DistanceDictionary(self.d, self.n_latents, k=self.k)
        side.W_enc, side.W_dec, side.b_dec = self.W_enc, weights, bias
        side.transform, side.metadata = self.transform, {**self.metadata, "modality": modality}
        return side

    def decode(self, z: Tensor | Codes, like: Tensor | None = None, modality: str = "image") -> Tensor:
        """Reconstruction by one modality's decoder, `[..., d]`, in the units of the activations.

        Args:
            z: codes, `[..., n_latents]`, of either modality: those of an image decoded as text are a translation.
            like: the activations that the codes are of; only needed behind a transform of each vector.
            modality: "image" or "text", whose decoder to use.

        Raises:
            ValueError: for another modality or number of latents, or a missing `like`.
        """
        return super().decode(z, like) if modality == "image" else self.view(modality).decode(z, like)

    def decoded(self, z: Tensor, modality: str) -> Tensor:
        """`z W_dec_m + b_dec_m`, behind the transform, where losses are computed."""
        weights, bias = self._decoder(modality)
        return z @ weights + bias

    def trace(self, x: Tensor, modality: Tensor | None = None) -> Trace:
        """The forward pass of training; each row by the decoder of its `modality [B]`: 0 image, 1 text; None: images."""
        if modality is None:
            return super().trace(x)
        pre = self.pre(x)
        z = self.activate(pre)
        xhat = torch.empty_like(x)
        for number, name in enumerate(MODALITIES):
            xhat[modality == number] = self.decoded(z[modality == number], name)
        return Trace(pre, z, xhat, {"modality": modality})
