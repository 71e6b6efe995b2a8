"""Curves over the levels of both Matryoshkas."""

import pytest
import torch

from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
from vlsae.dictionaries.nested_sparsity import NestedSparsityMatryoshka
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics.progressive import progressive_reconstruction
from vlsae.metrics.reconstruction import reconstruction
from vlsae.training import train
from vlsae.world import planted


def _planted_dictionary(world, ks):
    """The true atoms of orthogonal concepts, which tied weights read exactly."""
    sae = NestedSparsityMatryoshka(d=world.atoms.shape[1], n_latents=len(world.atoms), ks=ks)
    with torch.no_grad():
        sae.W_dec.copy_(world.atoms)
        sae.W_enc.copy_(world.atoms.T)
    return sae


def _orthogonal(seed=0):
    world = planted(d=16, n_atoms=16, k=4, seed=seed)
    atoms = torch.linalg.qr(world.atoms)[0]
    z = world.sample(2000)[1]
    return type(world)(**{**vars(world), "atoms": atoms}), z @ atoms, z


def test_every_cut_leaves_out_exactly_the_weakest_concepts():
    """Card 28: errors fall with k, and strongest concepts come first. Orthogonal atoms: the error is what is left out."""
    world, x, z = _orthogonal()
    sae = _planted_dictionary(world, [1, 2, 4, 16])
    spread = (x - x.mean(0)).square().sum()
    ordered = z.sort(dim=1, descending=True).values
    levels = progressive_reconstruction(sae, x)
    assert [level.size for level in levels] == [1, 2, 4, 16]
    assert [level.metrics["l0"].value for level in levels[:3]] == [1, 2, 4]
    for level in levels:
        left_out = ordered[:, level.size :].square().sum() / spread
        assert level.metrics["ev_centred"].value == pytest.approx(1 - left_out.item(), abs=1e-5)
    other = progressive_reconstruction(sae, x, sizes=[3])
    assert other[0].metrics["ev_centred"].value == pytest.approx(
        1 - (ordered[:, 3:].square().sum() / spread).item(), abs=1e-5
    )


def test_a_level_is_the_dictionary_alone():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    nested = NestedSparsityMatryoshka(d=8, n_latents=32, ks=[2, 8, 32])
    for level, k in enumerate(nested.ks):
        part = nested.sub_dictionary(level)
        assert torch.equal(part.encode(x), nested.encode_at(x, k))
        assert part.W_dec is not nested.W_dec
    assert nested.cut == 0
    prefixes = NestedDictionaryMatryoshka(d=8, n_latents=32, k=4, prefixes=[4, 16, 32])
    levels = progressive_reconstruction(prefixes, x)
    assert [level.size for level in levels] == [4, 16, 32]
    assert levels[1].metrics == reconstruction(prefixes.sub_dictionary(1), x)
    assert levels[2].metrics == reconstruction(prefixes, x)


@pytest.mark.parametrize("family", ["nested_dictionary", "nested_sparsity"])
def test_trained_levels_rise(family):
    """Measured over three seeds, first level to last: prefixes .45, .66 to .74, .83; sparsities .46, .85 to .88, .97."""
    x, _ = planted(d=24, n_atoms=32, k=3, decay=0.93, seed=2).sample(6000)
    own = {"nested_dictionary": {"k": 3, "prefixes": [8, 16, 32]}, "nested_sparsity": {"ks": [1, 3, 32]}}[family]
    sae = train(x, family, n_latents=32, steps=500, batch_size=512, lr=3e-3, progress=False, **own)
    curve = [level.metrics["ev_centred"].value for level in progressive_reconstruction(sae, x)]
    assert curve[0] < curve[1] < curve[2]


def test_messages():
    x = torch.randn(20, 4)
    with pytest.raises(ValueError, match=r"'topk' with sizes=\[\] has no levels"):
        progressive_reconstruction(TopKDictionary(4, 8, k=2), x)
    with pytest.raises(ValueError, match=r"'nested_dictionary' with sizes=\[2\]"):
        progressive_reconstruction(NestedDictionaryMatryoshka(4, 8, k=2), x, sizes=[2])
    nested = NestedSparsityMatryoshka(4, 8, ks=[2, 8])
    with pytest.raises(ValueError, match="k=9 must lie between 1 and n_latents=8"):
        progressive_reconstruction(nested, x, sizes=[9])
    with pytest.raises(ValueError, match="level=2 does not exist; there are 2"):
        nested.sub_dictionary(2)
