"""Cross-modal weights: the analytic value, kinds of latents, one pass against a full sort, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlsae.concepts import SampleTokens, cross_modal_weights, strongest_codes
from vlsae.dictionaries.base import Codes
from vlsae.training import train
from vlsae.world import planted_pairs


def _part(tokens: SampleTokens, chosen: torch.Tensor) -> SampleTokens:
    """Some tokens as a batch of their own."""
    of = (tokens.modality[chosen], tokens.sample[chosen], tokens.position[chosen])
    return SampleTokens(Codes.from_dense(tokens.codes.dense()[chosen]), tokens.hidden[chosen], *of)


def _stream(n=400, m=12, d=6, seed=0, levels=None) -> SampleTokens:
    """Random tokens of ragged samples; with few `levels` of activation there are many ties."""
    g = torch.Generator().manual_seed(seed)
    z = torch.rand(n, m, generator=g) * (torch.rand(n, m, generator=g) < 0.4)
    z = (z * levels).ceil() / levels if levels else z
    modality = torch.randint(-1, 2, (n,), generator=g)
    z[:, 0] *= modality == 0
    z[:, 1] *= modality == 1
    z[:, 2] = 0
    z[:, 3] *= (modality == 0) | ((modality == 1) & (modality.eq(1).cumsum(0) <= 4))
    sample = torch.randint(0, 30, (n,), generator=g)
    return SampleTokens(Codes.from_dense(z), torch.randn(n, d, generator=g), modality, sample)


def _full_sort(tokens: SampleTokens, top=30, pairs=5, min_each=5):
    """The definition, latent by latent, from all tokens at once."""
    z, h = tokens.codes.dense().numpy(), F.normalize(tokens.hidden.double(), dim=1).numpy()
    modality, omega, kinds = tokens.modality.numpy(), [], []
    for column in z.T:
        active = np.nonzero((column > 0) & (modality >= 0))[0]
        order = np.lexsort((tokens.position[active], tokens.sample[active], -column[active]))
        best = active[order][:top]
        images, texts = best[modality[best] == 0], best[modality[best] == 1]
        few = min(len(images), len(texts)) < min_each
        kinds.append("dead" if not len(best) else "image" if not len(texts) else "text" if not len(images)
                     else "undetermined" if few else "cross")  # fmt: skip
        omega.append((h[images[:pairs]] @ h[texts[:pairs]].T).mean() if kinds[-1] == "cross" else 0.0)
    return np.array(omega), kinds


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0)])
def test_the_weight_of_a_shared_direction_is_known(a, b):
    """`h = a d_k + b u` with another u for each modality: `a^2 / (a^2 + b^2)`; the same u: 1; one modality: 0."""
    d, n = torch.eye(8), 6  # rows 0 to 3 are concepts, 6 and 7 the modalities' own directions
    hidden, z, modality = [], [], []
    for concept, sides in enumerate([(6, 7), (6, 6), (6, None), (None, 7)]):
        for side, u in enumerate(sides):
            if u is not None:
                hidden += [a * d[concept] + b * d[u]] * n
                z += [torch.eye(5)[concept]] * n
                modality += [side] * n
    sample = torch.arange(len(z)) % 3
    tokens = SampleTokens(Codes.from_dense(torch.stack(z)), torch.stack(hidden), modality, sample)
    weights = cross_modal_weights([tokens], 5)
    assert weights.kind.tolist() == ["cross", "cross", "image", "text", "dead"]
    assert weights.omega.tolist() == pytest.approx([a**2 / (a**2 + b**2), 1, 0, 0, 0], abs=1e-7)


def test_too_few_tokens_of_one_modality_decide_nothing():
    z, modality = torch.ones(14, 1), [0] * 10 + [1] * 4
    tokens = SampleTokens(Codes.from_dense(z), torch.ones(14, 2), modality, [0] * 14)
    few, enough = cross_modal_weights([tokens], 1), cross_modal_weights([tokens], 1, pairs=4, min_each=4)
    assert (few.kind[0], few.omega[0].item()) == ("undetermined", 0.0)
    assert (enough.kind[0], enough.omega[0].item()) == ("cross", pytest.approx(1.0))


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("numbers", [{}, {"top_tokens": 9, "pairs": 2, "min_each": 3}])
def test_one_pass_equals_a_full_sort(levels, numbers):
    tokens = _stream(levels=levels)
    weights = cross_modal_weights((_part(tokens, rows) for rows in torch.arange(400).split(37)), 12, **numbers)
    omega, kinds = _full_sort(tokens, **{"top" if k == "top_tokens" else k: v for k, v in numbers.items()})
    assert weights.kind.tolist() == kinds
    assert {"dead", "image", "text", "cross"} <= set(kinds)
    np.testing.assert_allclose(weights.omega, omega, atol=1e-12)


def test_neither_split_nor_order_nor_sorting_out_change_a_bit(monkeypatch):
    tokens = _stream(levels=3)
    whole = cross_modal_weights([tokens], 12)
    monkeypatch.setattr("vlsae.concepts.cross_modal.SLACK", 0)
    for seed, size in ((1, 400), (2, 11), (3, 1)):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        other = cross_modal_weights((_part(tokens, rows) for rows in order.split(size)), 12)
        assert torch.equal(other.omega, whole.omega)
        assert (other.kind == whole.kind).all()
        np.testing.assert_array_equal(other.tokens, whole.tokens)


def test_hidden_states_are_kept_for_pairs_alone(monkeypatch):
    """Of a long stream only tokens that some latent compares stay in memory."""
    from vlsae.concepts import cross_modal

    monkeypatch.setattr(cross_modal, "SLACK", 50)
    best = cross_modal._BestTokens(4, 30, 5)
    for part in range(20):
        best.add(_stream(200, 4, seed=part))
        assert best.pool_size <= max(50 + 2 * 4 * 10, 200 + 2 * 40)


def test_the_strongest_codes_of_a_token():
    z = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)).mul(8).round()
    kept = strongest_codes(Codes.from_dense(z), 5).dense()
    ranked = z.argsort(dim=1, descending=True, stable=True)[:, :5]
    assert torch.equal(kept, torch.zeros_like(z).scatter(1, ranked, z.gather(1, ranked)))
    codes = Codes.from_dense(z)
    assert strongest_codes(codes, 30) is codes
    with pytest.raises(ValueError, match="top=0"):
        strongest_codes(codes, 0)


def test_one_dictionary_for_both_finds_all_three_kinds_of_atoms():
    """Planted atoms of both modalities, of images alone and of texts alone; a dictionary of texts knows no images."""
    pairs = planted_pairs(d=32, n_shared=12, n_private=8, k=2, private_k=1, seed=3)
    images, texts, _ = pairs.sample(6000)
    recipe = {
        "k": 3,
        "n_latents": 56,
        "steps": 500,
        "batch_size": 512,
        "lr": 5e-3,
        "b_dec_init": "none",
        "progress": False,
    }
    joint, of_texts = train(torch.cat([images, texts]), "topk", **recipe), train(texts, "topk", **recipe)
    found = (pairs.image_atoms @ F.normalize(joint.atoms, dim=1).T).amax(1)
    for owner in (0, 1, 2):
        assert found[pairs.owner == owner].min() >= 0.95
    unseen, unread, _ = pairs.sample(1000, part=1)
    error = {name: [float((x - sae.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum())
                    for x in (unseen, unread)] for name, sae in (("joint", joint), ("texts", of_texts))}  # fmt: skip
    assert error["texts"][0] > 3 * error["texts"][1] + 0.1
    assert error["texts"][0] > 3 * error["joint"][0] + 0.1
    tokens = SampleTokens.encode(joint, torch.cat([unseen, unread]), [0] * 1000 + [1] * 1000, [*range(1000)] * 2)
    kind = cross_modal_weights([tokens], 56).kind
    best = (pairs.image_atoms @ joint.atoms.T).argmax(1)
    for owner, name in ((0, "image"), (1, "text"), (2, "cross")):
        assert (kind[best[pairs.owner == owner]] == name).all()


def test_what_cannot_be_tokens_is_refused():
    codes, x = Codes.from_dense(torch.ones(2, 3)), torch.ones(2, 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        SampleTokens(codes, x * torch.nan, [0, 1], [0, 0])
    with pytest.raises(ValueError, match="Modality 2 is unknown"):
        SampleTokens(codes, x, [0, 2], [0, 0])
    with pytest.raises(ValueError, match="2 tokens have codes but 1"):
        SampleTokens(codes, x[:1], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="one row a token"):
        SampleTokens(codes, x[None], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="one whole number for each of the 2 tokens"):
        SampleTokens(codes, x, [0, 1, 1], [0, 0])
    with pytest.raises(ValueError, match="sample holds -1"):
        SampleTokens(codes, x, [0, 1], [0, -1])


def test_what_cannot_be_a_stream_is_refused():
    codes, x = Codes.from_dense(torch.ones(2, 3)), torch.ones(2, 4)
    tokens = SampleTokens(codes, x, [0, 1], [0, 0])
    with pytest.raises(ValueError, match="2 image and 0 text"):
        cross_modal_weights([SampleTokens(codes, x, [0, 0], [0, 0])], 3)
    with pytest.raises(ValueError, match="0 image and 0 text"):
        cross_modal_weights([], 3)
    with pytest.raises(ValueError, match="3 latents, but 5"):
        cross_modal_weights([tokens], 5)
    with pytest.raises(ValueError, match="came twice"):
        cross_modal_weights([tokens, tokens], 3)
    with pytest.raises(ValueError, match="do not fit; give 1 <= pairs"):
        cross_modal_weights([tokens], 3, pairs=6)
