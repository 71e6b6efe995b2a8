"""TopK without a ReLU: signs are kept, and where enough pre-activations are positive it is TopK."""

import torch

from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.unrectified_topk import UnrectifiedTopKDictionary
from vlsae.training import train
from vlsae.world import planted


def pair(k):
    """Equal weights in both families."""
    ours, plain = UnrectifiedTopKDictionary(8, 20, k=k, seed=1), TopKDictionary(8, 20, k=k, seed=1)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    return ours, plain, x


def test_the_k_largest_of_either_sign():
    """By sorting; k beyond half of all latents makes some negative, and they take part in the reconstruction."""
    sae, plain, x = pair(15)
    pre = sae.pre(x)
    least = pre.sort(dim=1, descending=True).values[:, 14:15]
    z = sae.encode(x)
    assert torch.equal(z, torch.where(pre >= least, pre, 0)) and (z < 0).any()
    assert torch.equal(plain.encode(x), z.clamp_min(0))
    assert torch.allclose(sae(x), z @ sae.W_dec + sae.b_dec, atol=1e-6)
    assert torch.equal(sae.encode_sparse(x).dense(), z)


def test_with_enough_positive_ones_it_is_topk_and_is_trained_alike():
    """The same codes and gradients, so the same weights after training by autograd, to rounding."""
    sae, plain, x = pair(3)
    assert torch.equal(sae.encode(x), plain.encode(x))
    data, _ = planted(8, 12, 2, seed=1).sample(2000)
    recipe = {"n_latents": 16, "k": 2, "steps": 40, "batch_size": 128, "progress": False, "seed": 0, "engine": "torch"}
    first, second = (train(data, family, **recipe) for family in ("unrectified_topk", "topk"))
    assert (first.encode(data) >= 0).all()
    assert torch.allclose(first.W_dec, second.W_dec, atol=1e-6)
