"""Crosscoders: planted atoms that write to some layers only, and the penalty by hand."""

import pytest
import torch
import torch.nn.functional as F

from vlsae.dictionaries.crosscoder import Crosscoder
from vlsae.metrics.matching import max_cosine
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.decoder_norms import DecoderNorms


def test_planted_layers_are_found():
    """Atoms that write to one layer or both have their share of decoder norms there."""
    generator = torch.Generator().manual_seed(7)
    bases = [torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:9] for _ in range(2)]
    there = torch.tensor([[1.0, 1.0]] * 3 + [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    atoms = torch.cat([basis * there[:, [layer]] for layer, basis in enumerate(bases)], 1)
    amounts = (torch.rand(8000, 9, generator=generator) < 0.1) * (1 + torch.rand(8000, 9, generator=generator))
    sae = train(
        amounts @ atoms, "crosscoder", layers=2, n_latents=16, l1=0.05, steps=2500, batch_size=512, lr=3e-3,
        dead_policy="none", progress=False,
    )  # fmt: skip
    cosine, latent = max_cosine(F.normalize(atoms), sae.atoms)
    share = sae.layer_share()[latent]
    assert cosine.min() > 0.95
    assert (share - there / there.sum(1, keepdim=True)).abs().max() < 0.1


def test_the_penalty_by_hand():
    sae = Crosscoder(4, 1, layers=2)
    sae.W_dec.data = torch.tensor([[3.0, 4.0, 0.0, 2.0]])
    z = torch.tensor([[1.0], [3.0]])
    step = Step(sae, torch.zeros(2, 4), z, z, torch.zeros(2, 4), torch.zeros(1, dtype=torch.bool))
    assert DecoderNorms(0.5)(step).item() == pytest.approx(0.5 * 2 * 7)
    assert sae.layer_norms().tolist() == [[5.0, 2.0]]


def test_layers_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 layers do not divide the width 4"):
        Crosscoder(4, 8, layers=3)
