"""A joint space for models that have none: VL-SAE's auxiliary autoencoder (Shen et al. 2025)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from vlsae.atomic import replacing
from vlsae.dictionaries.vl_sae import MODALITIES

WEIGHTS = "alignment.safetensors"


class AlignmentAutoencoder(nn.Module):
    """Linear maps of images and texts into one space and back: `e_m = E_m x_m`, `xhat_m = D_m e_m`, with biases.

    Where images and texts have no space in common (hidden states of a language model that reads both), a VL-SAE is
    trained on `encode` of both and its output decoded by `decode`. Make it with `align`. arXiv 2510.21323.

    Args:
        d_image, d_text: widths of the two.
        d: width of the joint space; `d_image` where 0.
        seed: of the initial weights.

    Raises:
        ValueError: for widths below 1.

    Example:
        >>> maps = AlignmentAutoencoder(4, 6, d=3)
        >>> maps.encode(torch.randn(5, 6), "text").shape, maps.decode(torch.randn(5, 3), "image").shape
        (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    def __init__(self, d_image: int, d_text: int, *, d: int = 0, seed: int = 0):
        super().__init__()
        d = d or d_image
        if min(d_image, d_text, d) < 1:
            raise ValueError(f"Widths d_image={d_image}, d_text={d_text} and d={d} must be at least 1.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoders = nn.ModuleDict({"image": nn.Linear(d_image, d), "text": nn.Linear(d_text, d)})
            self.decoders = nn.ModuleDict({"image": nn.Linear(d, d_image), "text": nn.Linear(d, d_text)})

    def encode(self, x: Tensor, modality: str) -> Tensor:
        """Vectors of a modality `[..., d_m]` in the joint space, `[..., d]`; ValueError for an unknown modality."""
        return self._of(self.encoders, modality)(x)

    def decode(self, e: Tensor, modality: str) -> Tensor:
        """Vectors of the joint space `[..., d]` as those of a modality, `[..., d_m]`; ValueError for an unknown one."""
        return self._of(self.decoders, modality)(e)

    @staticmethod
    def _of(maps: nn.ModuleDict, modality: str) -> nn.Module:
        if modality not in MODALITIES:
            raise ValueError(f"modality={modality!r} is unknown; use one of {', '.join(MODALITIES)}.")
        return maps[modality]

    def save(self, folder: str | Path) -> Path:
        """Write `alignment.safetensors`, whose shapes say everything else; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, partial)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> AlignmentAutoencoder:
        """Read what `save` wrote; FileNotFoundError where it is not there."""
        weights = load_file(Path(folder) / WEIGHTS)
        widths = [weights[f"encoders.{modality}.weight"].shape for modality in MODALITIES]
        made = cls(widths[0][1], widths[1][1], d=widths[0][0])
        made.load_state_dict(weights)
        return made


def info_nce(images: Tensor, texts: Tensor, temperature: float = 0.07, normalise: bool = False) -> Tensor:
    """Symmetric InfoNCE, `(CE(v t^T / tau, i) + CE(t v^T / tau, i)) / 2`, over the pairs of a batch.

    Args:
        images, texts: `[B, d]`, row by row of a pair.
        temperature: tau.
        normalise: take cosines; the released code takes plain products, although the paper writes cosines.

    Returns:
        A scalar; `log B` where nothing is told apart.

    Example:
        >>> round(info_nce(torch.zeros(4, 2), torch.zeros(4, 2)).item(), 4)
        1.3863
    """
    if normalise:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits, own = images @ texts.T / temperature, torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def align(
    images: Tensor,
    texts: Tensor,
    *,
    d: int = 0,
    epochs: int = 50,
    batch_size: int = 2048,
    lr: float = 5e-5,
    weight_decay: float = 0.01,
    temperature: float = 0.07,
    normalise: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> AlignmentAutoencoder:
    """Train an alignment autoencoder: `InfoNCE(e_v, e_t) + MSE_v + MSE_t`; the defaults are the released code's.

    The released code keeps the best of a fifth of the data held out; this keeps the last. arXiv 2510.21323.

    Args:
        images, texts: `[N, d_image]` and `[N, d_text]`, row by row of a pair.
        d: width of the joint space; that of images where 0.
        epochs: passes over the pairs; the learning rate falls by a cosine, once a pass.
        batch_size: pairs a step, which are each other's negatives.
        lr, weight_decay: of AdamW.
        temperature, normalise: of `info_nce`.
        seed: of weights and order.
        progress: show a progress bar.

    Returns:
        The trained autoencoder.

    Raises:
        ValueError: for unequal or fewer than two rows.

    Example:
        >>> maps = align(torch.randn(32, 4), torch.randn(32, 6), d=3, epochs=2, progress=False)
        >>> maps.encode(torch.randn(5, 4), "image").shape
        torch.Size([5, 3])
    """
    if len(images) != len(texts) or len(images) < 2:
        raise ValueError(
            f"{len(images)} images and {len(texts)} texts were given; give at least two pairs, row by row."
        )
    maps = AlignmentAutoencoder(images.shape[1], texts.shape[1], d=d, seed=seed)
    optimizer = torch.optim.AdamW(maps.parameters(), lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for epoch in trange(epochs, desc="align", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            pair = {"image": images[rows], "text": texts[rows]}
            joint = {name: maps.encode(x, name) for name, x in pair.items()}
            loss = info_nce(joint["image"], joint["text"], temperature, normalise)
            loss = loss + sum(F.mse_loss(maps.decode(joint[name], name), x) for name, x in pair.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return maps.requires_grad_(False)
