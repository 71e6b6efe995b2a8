"""Training steps of other libraries, each as its own loop makes them; what they need to run here is patched and told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torch

LR = 1e-4


def without(*names: str) -> None:
    """Let modules that a peer imports and a training step does not use be missing."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = MagicMock(__path__=[], __spec__=ModuleSpec(name, None))
            print(f"patched: {name} is not installed, an empty module stands for it")


def sparsify_topk(x: torch.Tensor, n: int, k: int) -> Callable[[], float]:
    """eai-sparsify, its eager decoder; forward, backward, unit norm and step as in its trainer, Adam instead of signSGD."""
    import sparsify.sparse_coder as module
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.utils import eager_decode

    if module.decoder_impl is not eager_decode:
        module.decoder_impl = eager_decode
        print("patched: sparsify decodes by its eager path, Triton needs a GPU")
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: False
    print("patched: sparsify's question for bf16 on a GPU is answered with no")
    torch.manual_seed(0)
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=n, k=k))
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def step() -> float:
        loss = sae(x, dead_mask=None).fvu
        loss.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        sae.set_decoder_norm_to_unit_norm()
        return loss.item()

    return step


def _overcomplete(x: torch.Tensor, make: Callable) -> Callable[[], float]:
    """overcomplete's `train_sae`, for one batch, without its printing."""
    without("cv2", "timm", "skimage", "skimage.segmentation")
    import matplotlib.pyplot as plt

    if not hasattr(plt.cm, "get_cmap"):
        plt.cm.get_cmap = plt.get_cmap
        print("patched: plt.cm.get_cmap, which overcomplete asks for and matplotlib has dropped")
    import overcomplete.sae as library
    from overcomplete.sae.train import train_sae

    torch.manual_seed(0)
    sae = make(library)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=True)

    def error(x, xhat, pre, z, atoms):
        return (x - xhat).square().sum(-1).mean()

    def step() -> float:
        train_sae(sae, [x], error, optimizer, nb_epochs=1, monitoring=0, device="cpu")
        return 0.0

    return step


def overcomplete_topk(x: torch.Tensor, n: int, k: int) -> Callable[[], float]:
    return _overcomplete(x, lambda library: library.TopKSAE(x.shape[1], n, top_k=k))


def overcomplete_batch_topk(x: torch.Tensor, n: int, k: int) -> Callable[[], float]:
    return _overcomplete(x, lambda library: library.BatchTopKSAE(x.shape[1], n, top_k=k * len(x)))


def overcomplete_relu(x: torch.Tensor, n: int, k: int) -> Callable[[], float]:
    """Without its L1 term, which would cost a little more."""
    return _overcomplete(x, lambda library: library.SAE(x.shape[1], n))


def _sae_lens(x: torch.Tensor, n: int, name: str, **options) -> Callable[[], float]:
    """The body of SAELens' `SAETrainer._train_step`, without its logging and schedules."""
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(0)
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=x.shape[1], d_sae=n, **options)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
    coefficients = {"l1": 0.1} if name == "Standard" else {}
    silent, frequency = torch.zeros(n), torch.zeros(n)

    def step() -> float:
        given = TrainStepInput(x, coefficients, silent > 1000, 1, False)
        out = sae.training_forward_pass(given)
        with torch.no_grad():
            fires = out.feature_acts.bool().float()
            silent.add_(1)
            silent[fires.sum(0).bool()] = 0
            frequency.add_(fires.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return out.loss.item()

    return step


def sae_lens_topk(x, n, k):
    return _sae_lens(x, n, "TopK", k=k, use_sparse_activations=False)


def sae_lens_batch_topk(x, n, k):
    return _sae_lens(x, n, "BatchTopK", k=k, use_sparse_activations=False)


def sae_lens_nested(x, n, k):
    widths = [n // share for share in (16, 8, 4, 2, 1)]
    return _sae_lens(x, n, "MatryoshkaBatchTopK", k=k, matryoshka_widths=widths, use_sparse_activations=False)


def sae_lens_relu(x, n, k):
    return _sae_lens(x, n, "Standard", l1_coefficient=0.1)


def _dictionary_learning(x: torch.Tensor, n: int, module: str, trainer: str, **options) -> Callable[[], float]:
    """dictionary_learning's own trainer."""
    without("datasets", "nnsight", "wandb", "zstandard", "circuitsvis")
    import importlib

    make = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), trainer)
    trainer = make(
        steps=10_000,
        activation_dim=x.shape[1],
        dict_size=n,
        layer=0,
        lm_name="none",
        lr=LR,
        seed=0,
        device="cpu",
        **options,
    )
    trainer.update(1, x)
    count = iter(range(2, 10**9))
    return lambda: trainer.update(next(count), x)


def dictionary_learning_topk(x, n, k):
    return _dictionary_learning(x, n, "top_k", "TopKTrainer", k=k)


def dictionary_learning_batch_topk(x, n, k):
    return _dictionary_learning(x, n, "batch_top_k", "BatchTopKTrainer", k=k)


def dictionary_learning_nested(x, n, k):
    shares = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    module, trainer = "matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"
    return _dictionary_learning(x, n, module, trainer, k=k, group_fractions=shares)


def dictionary_learning_relu(x, n, k):
    return _dictionary_learning(x, n, "standard", "StandardTrainer", l1_penalty=0.1)


PEERS = {  # family -> row -> (distribution, how to make a step)
    "topk": {
        "sparsify": ("eai-sparsify", sparsify_topk),
        "overcomplete": ("overcomplete", overcomplete_topk),
        "dictionary_learning": ("dictionary-learning", dictionary_learning_topk),
        "sae-lens": ("sae-lens", sae_lens_topk),
    },
    "batch_topk": {
        "overcomplete": ("overcomplete", overcomplete_batch_topk),
        "dictionary_learning": ("dictionary-learning", dictionary_learning_batch_topk),
        "sae-lens": ("sae-lens", sae_lens_batch_topk),
    },
    "nested_dictionary": {
        "dictionary_learning": ("dictionary-learning", dictionary_learning_nested),
        "sae-lens": ("sae-lens", sae_lens_nested),
    },
    "relu": {
        "overcomplete": ("overcomplete", overcomplete_relu),
        "dictionary_learning": ("dictionary-learning", dictionary_learning_relu),
        "sae-lens": ("sae-lens", sae_lens_relu),
    },
}
