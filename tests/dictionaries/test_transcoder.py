"""A target other than the input: planted layers, pairs of stores, and what cannot be paired."""

import pytest
import torch
import torch.nn.functional as F

from vlsae import extract
from vlsae.activations import PairedActivations, StoreError
from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.transcoder import Transcoder
from vlsae.dictionaries.transform import InputTransform
from vlsae.metrics.matching import max_cosine
from vlsae.metrics.reconstruction import reconstruction
from vlsae.training import train
from vlsae.world import scenes


def _planted_layer(n=20_000, d=16, concepts=16):
    """Inputs of sparse orthonormal concepts; the layer writes another direction for each, in the same amount."""
    generator = torch.Generator().manual_seed(11)
    read = torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:concepts]
    write = F.normalize(torch.randn(concepts, d, generator=generator), dim=1)
    there = torch.rand(n, concepts, generator=generator) < 0.1
    amount = there * (0.5 + torch.rand(n, concepts, generator=generator))
    return read, write, amount @ read, amount @ write + 0.5


def test_it_finds_what_a_planted_layer_reads_and_writes(tmp_path):
    """Card 39: decoder atoms are the written directions, encoder columns the read ones, and it predicts the output."""
    read, write, x, y = _planted_layer()
    options = {"n_latents": 24, "k": 3, "steps": 2000, "batch_size": 512, "lr": 3e-3, "progress": False}
    sae = train(PairedActivations(x, y), "transcoder", **options)
    best, partner = max_cosine(write, sae.atoms)
    keys = F.cosine_similarity(sae.W_enc.T[partner], read)
    score = reconstruction(sae, x, target=y)["ev_centred"].value
    assert best.min() > 0.99
    assert keys.min() > 0.95
    assert score > 0.95
    assert reconstruction(sae, x)["ev_centred"].value < 0
    again = load_dictionary(sae.save(tmp_path))
    assert isinstance(again, Transcoder)
    assert torch.equal(again(x[:9]), sae(x[:9]))


def test_a_target_that_is_the_input_changes_nothing():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    options = {"n_latents": 16, "k": 2, "steps": 20, "batch_size": 100, "progress": False}
    alone, paired = train(x, "topk", **options), train(PairedActivations(x, x), "topk", **options)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, paired.state_dict()[name]), name


def test_a_run_on_pairs_resumes_exactly(tmp_path):
    _, _, x, y = _planted_layer(800)
    options = {"n_latents": 16, "k": 2, "batch_size": 128, "checkpoint_every": 5, "progress": False}
    whole = train(PairedActivations(x, y), "transcoder", steps=12, decay=0.0, **options)

    class Interrupted(PairedActivations):
        def shuffled(self, *args, **kwargs):
            for number, item in enumerate(super().shuffled(*args, **kwargs)):
                if number == 6:
                    raise KeyboardInterrupt
                yield item

    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(x, y), "transcoder", steps=12, decay=0.0, out=tmp_path, **options)
    rest = train(PairedActivations(x, y), "transcoder", steps=12, decay=0.0, out=tmp_path, **options)
    assert torch.equal(whole.W_dec, rest.W_dec)


def test_stores_of_two_sites_are_read_token_by_token(tiny, tmp_path):
    drawn = scenes(20, seed=5)
    folders = [
        extract(
            tiny, drawn, out=tmp_path / name, site=f"vision.-2.{name}", shard_images=8, batch_size=8, progress=False
        )
        for name in ("mlp_in", "mlp_out")
    ]
    pair = PairedActivations(*folders)
    mlp = tiny.blocks("vision")[-2].mlp
    for x, _ in pair.shuffled(200):
        assert (mlp(x) - pair.target).norm() < 5e-3 * pair.target.norm()  # stores hold 16 bits
    sae = train(pair, "transcoder", n_latents=32, k=4, steps=3, batch_size=256, progress=False)
    assert sae.metadata["site"].endswith("mlp_in")
    assert sae.metadata["target_site"].endswith("mlp_out")


def test_what_cannot_be_paired_is_refused(store):
    x = torch.randn(10, 4)
    with pytest.raises(StoreError, match="Inputs are 10 of width 4, targets 9 of width 4"):
        PairedActivations(x, x[:9])
    with pytest.raises(StoreError, match="both be stores or both be tensors"):
        PairedActivations(store, torch.randn(len(store), store.d))
    with pytest.raises(ValueError, match="input_transform='centre' would change inputs"):
        train(PairedActivations(x, x), "transcoder", n_latents=8, k=1, steps=1, input_transform="centre")


def test_a_fixed_transform_is_folded_and_one_of_each_token_is_not():
    """Codes in the units of the activations, the reconstruction as it was; up to rounding."""
    x = 3 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    sae = Transcoder(d=4, n_latents=8, k=2)
    sae.transform = InputTransform.fit(x, "centre_sqrt_d")
    with torch.no_grad():
        sae.b_enc.add_(torch.linspace(-0.2, 0.3, 8))
        sae.b_dec.add_(0.5)
    codes, output, scale = sae.encode(x), sae(x), sae.transform.scale[0]
    sae.fold_transform()
    assert torch.allclose(sae.encode(x), codes / scale, atol=1e-5)
    assert torch.allclose(sae(x), output, atol=1e-5)
    sae.transform = InputTransform(4, "unit")
    with pytest.raises(ValueError, match="'unit' cannot be folded"):
        sae.fold_transform()
