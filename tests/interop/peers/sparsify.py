"""EleutherAI's sparsify, from its package eai-sparsify."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from tests.interop.make_fixtures import fresh, inputs, record

D, N = 8, 32
CASES = {  # name: (configuration, our family)
    "layers.5": ({"k": 4}, "topk"),
    "k_beyond_positives": ({"k": 28, "multi_topk": True}, "topk"),
    "layers.5.mlp": ({"k": 6, "transcode": True}, "transcoder"),
    "expansion": ({"k": 4, "expansion_factor": N // D}, "topk"),
}


def library():
    """`sparsify.SparseCoder` and its configuration; decoding by its own torch function, since Triton's kernel wants a GPU."""
    from sparsify import SparseCoder, SparseCoderConfig, sparse_coder
    from sparsify.utils import eager_decode

    sparse_coder.decoder_impl = eager_decode
    return SparseCoder, SparseCoderConfig


def codes_and_reconstruction(sae, x):
    """A coder's own output, its codes made dense."""
    with torch.no_grad():
        found = sae.encode(x)
        codes = torch.zeros(len(x), sae.num_latents).scatter(1, found.top_indices, found.top_acts)
        return codes, sae.decode(found.top_acts, found.top_indices)


def coder(settings: dict, seed: int):
    """A coder with random weights and biases that matter."""
    SparseCoder, SparseCoderConfig = library()
    size = {} if "expansion_factor" in settings else {"num_latents": N}
    sae = SparseCoder(D, SparseCoderConfig(**size, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight, size, mean in ((sae.encoder.weight, 0.5, 0), (sae.encoder.bias, 0.6, 0), (sae.W_dec, 0.4, 0),
                                   (sae.b_dec, 0.8, 0.5)):  # fmt: skip
            weight.copy_(mean + size * torch.randn(weight.shape, generator=generator))
    return sae


def make(root: Path) -> None:
    for seed, (name, (settings, family)) in enumerate(CASES.items()):
        folder, x = fresh(root, name), inputs(D)
        coder(settings, seed).save_to_disk(folder)
        codes, xhat = codes_and_reconstruction(library()[0].load_from_disk(folder), x)
        record(
            folder, x, codes, xhat, peer=f"eai-sparsify {version('eai-sparsify')}", dialect="sparsify", family=family
        )
