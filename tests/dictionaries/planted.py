"""Small dictionaries with known contents, to be saved and opened again."""

import torch

from vlsae.dictionaries.jumprelu import JumpReLUDictionary
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import InputTransform


def planted(kind, transform="none", **settings):
    """A dictionary whose every tensor is random, so that none can be left at its start unseen."""
    generator = torch.Generator().manual_seed(3)
    found = kind(6, 10, **settings)
    found.transform = InputTransform.fit(torch.randn(40, 6, generator=generator) + 2, transform)
    with torch.no_grad():
        for value in found.parameters():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    found.normalise_atoms()
    found.metadata = {"model": "hf:openai/clip-vit-base-patch16", "site": "vision.-2.resid_post", "n_tokens_seen": 4096}
    return found


FAMILIES = {
    "topk": lambda: planted(TopKDictionary, k=3),
    "relu": lambda: planted(ReLUDictionary),
    "jumprelu": lambda: planted(JumpReLUDictionary, "centre_sqrt_d"),
}
