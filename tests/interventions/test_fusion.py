"""Card 47's tests 5 and 6: a text that says too much is corrected by its image, and logits are mixed as specified."""

import pytest
import torch

from vlsae.dictionaries.vl_sae import VLSAE
from vlsae.interventions import fuse_codes, fused_text, mix_logits
from vlsae.training.alignment import AlignmentAutoencoder
from vlsae.world import planted_pairs


@pytest.fixture
def toy():
    """A language model in closed form: word `i` has the logit `x . text_atom_i`; concepts are orthonormal in both."""
    planted = planted_pairs(16, 8, k=2, gap=1.0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4)))[0]
    sae = VLSAE(16, 8, k=2)
    sae.W_enc.data, sae.W_dec.data, sae.W_dec_text.data = basis[:8].T.clone(), basis[:8].clone(), basis[:8].clone()
    sae.b_dec.data, sae.b_dec_text.data = planted.image_bias, planted.text_bias
    return sae, basis[:8]


def test_a_hallucinated_word_loses(toy):
    """The image shows concepts 1 and 2, the text says 1 and 5: word 5 falls, word 2 rises, word 1 stays on top."""
    sae, words = toy
    image, text = words[1] + words[2], words[1] + words[5]
    before = text @ words.T
    for mode, beta in (("convex", 0.9), ("add", 1.0)):
        after = fused_text(sae, text[None], image[None], beta=beta, mode=mode)[0] @ words.T
        change = (after - sae.b_dec_text @ words.T * 0.8) - before
        assert change[2] > 0.3
        assert after[1] > after[5]
        if mode == "convex":
            assert change[5] < -0.3
    again = fused_text(sae, text[None], image[None], alpha=0.0)
    assert torch.equal(again[0], text)


def test_fusing_by_hand():
    text, image = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 3.0, 1.0])
    assert torch.equal(fuse_codes(text, image, 1.0, "convex"), image)
    assert torch.equal(fuse_codes(text, image, 0.0), text)
    assert fuse_codes(text, image, 2.0).tolist() == [1, 6, 4]
    with pytest.raises(ValueError, match="mode='max' is unknown"):
        fuse_codes(text, image, 0.5, "max")


def test_behind_maps_the_text_comes_back_in_its_own_space(toy):
    sae, _ = toy
    maps = AlignmentAutoencoder(20, 24, d=16, seed=1).requires_grad_(False)
    text, image = torch.randn(3, 24), torch.randn(3, 20)
    moved = fused_text(sae, text, image, alpha=1.0, beta=1.0, maps=maps)
    z = sae.encode(maps.encode(image, "image"))
    assert torch.allclose(moved, maps.decode(sae.decode(z, modality="text"), "text"), atol=1e-6)


def test_mixed_logits():
    base, edited = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    tiny = 1e-9  # nothing is ruled out
    assert torch.equal(mix_logits(base, edited, 0.0, tiny), base)
    assert torch.equal(mix_logits(base, edited, 1.0, tiny), edited)
    mixed = mix_logits(base, edited, 0.6, 0.5)
    p = base.softmax(-1)
    assert torch.equal(torch.isfinite(mixed), p >= 0.5 * p.amax(-1, keepdim=True))
    assert torch.equal(mix_logits(base, edited, 0.6, 1.0).argmax(-1), base.argmax(-1))
    with pytest.raises(ValueError, match="cutoff=0 is a share"):
        mix_logits(base, edited, cutoff=0)
