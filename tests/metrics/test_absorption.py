"""Absorption on the toy of arXiv 2409.14507: by hand, where every number is known, and trained."""

import itertools
import math

import pytest
import torch

from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.absorption import absorption
from vlsae.metrics.latent_effects import latent_effects, zero_shot_margin
from vlsae.metrics.linear_probe import linear_probe
from vlsae.metrics.splitting import feature_splits, k_sparse_probe
from vlsae.training import train

D = 50
FEATURES = torch.linalg.qr(torch.randn(D, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0].T
PARENT = FEATURES[0]
EFFECTS = ("ablation", "integrated_gradients", "projection")


def _presence():
    """Bool `[400, 4]`: the parent in a quarter of the rows, each other in 5 %, the child only with the parent."""
    there = torch.zeros(400, 4, dtype=torch.bool)
    there[:100, 0] = True
    there[:20, 1] = True
    there[3::20, 2] = True
    there[7::20, 3] = True
    return there


THERE = _presence()
X = THERE.double() @ FEATURES


def _by_hand(alpha: float) -> ReLUDictionary:
    """The dictionary whose child atom is `(child + alpha parent) / sqrt(1 + alpha^2)`, exact for every alpha."""
    sae, length = ReLUDictionary(D, 4).double(), math.sqrt(1 + alpha**2)
    with torch.no_grad():
        sae.W_dec.copy_(FEATURES)
        sae.W_dec[1] = (FEATURES[1] + alpha * PARENT) / length
        sae.W_enc.copy_(FEATURES.T)
        sae.W_enc[:, 0] = PARENT - alpha * FEATURES[1]
        sae.W_enc[:, 1] = length * FEATURES[1]
    return sae


@pytest.mark.parametrize("effect", EFFECTS)
def test_no_and_full_absorption_by_hand(effect):
    """Card 45, test 1: rates exactly 0 and `P(child) / P(parent) = .2`, at any scale of the read-out."""
    probe = linear_probe(X, THERE[:, 0], C=100.0)
    readouts = (None,) if effect == "projection" else (None, 5 * PARENT, 0.01 * PARENT)
    for direction in (PARENT, 7 * PARENT, probe):
        for readout in readouts:
            options = {"main": [0], "effect": effect, "readout": readout}
            assert absorption(_by_hand(0.0), X, THERE[:, 0], direction, **options).rate == 0
            full = absorption(_by_hand(1.0), X, THERE[:, 0], direction, **options)
            assert (full.rate, full.n, full.missed) == (0.2, 100, 20)
            assert full.absorbers == ((1, tuple(range(20))),)
            assert full.metrics()["absorption"].value == 0.2


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_graded_fraction_is_alpha(alpha):
    """On the child's rows the parent writes `1 - alpha` of its direction and the child `alpha`; elsewhere nothing is lost."""
    sae = _by_hand(alpha)
    assert (sae(X) - X).abs().max() < 1e-14
    found = absorption(sae, X, THERE[:, 0], PARENT, main=[0])
    assert torch.allclose(found.fraction[:20], torch.full((20,), alpha, dtype=torch.float64), atol=1e-12)
    assert found.fraction[20:].max() < 1e-12
    assert found.graded == pytest.approx(0.2 * alpha, abs=1e-12)
    assert found.rate == (0.2 if alpha == 1 else 0)


def test_the_margin_can_be_a_number_of_logits():
    """The absorbing latent's effect is the scale of the read-out: 5 passes the paper's margin of 1, and .5 does not."""
    for scale, rate in ((5.0, 0.2), (0.5, 0.0)):
        options = {"main": [0], "readout": scale * PARENT, "margin": 1.0, "absolute": True}
        assert absorption(_by_hand(1.0), X, THERE[:, 0], PARENT, **options).rate == rate


def test_two_absorbers_at_once_are_none():
    """As in the paper, two latents that carry equal parts of the concept have no lead over each other."""
    sae = _by_hand(1.0)
    with torch.no_grad():  # half the parent moves from the child's latent to another child that is always with it
        sae.W_dec[1:3] = torch.nn.functional.normalize(FEATURES[1:3] + PARENT / 2, dim=1)
        sae.W_enc[:, 1:3] = FEATURES[1:3].T * math.sqrt(1.25)
        sae.W_enc[:, 0] = PARENT - (FEATURES[1] + FEATURES[2]) / 2
    there = THERE.clone()
    there[:, 2] = there[:, 1]
    x = there.double() @ FEATURES
    assert (sae(x) - x).abs().max() < 1e-14
    found = absorption(sae, x, there[:, 0], PARENT, main=[0])
    assert (found.rate, found.missed) == (0.0, 20)
    assert found.graded == pytest.approx(0.2)
    assert absorption(sae, x, there[:, 0], PARENT, main=[0], margin=0.0, cosine=-1.0).rate == 0.2


def test_the_cost_falls_with_absorption():
    """Card 45, test 3: with both there, L1 is `(1 - alpha) + sqrt(1 + alpha^2)`, from 2 down to sqrt 2; L0 from 2 to 1."""
    both, alphas = FEATURES[:1] + FEATURES[1:2], [i / 20 for i in range(21)]
    costs = [_by_hand(alpha).encode(both).sum().item() for alpha in alphas]
    assert costs == pytest.approx([1 - a + math.sqrt(1 + a**2) for a in alphas], abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(costs))
    assert (costs[0], costs[-1]) == pytest.approx((2.0, math.sqrt(2.0)), abs=1e-12)
    assert [(_by_hand(a).encode(both) > 1e-8).sum().item() for a in (0.0, 0.5, 1.0)] == [2, 2, 1]


def _random_dictionary(seed=3):
    generator = torch.Generator().manual_seed(seed)
    sae = ReLUDictionary(12, 30, seed=seed).double()
    return sae, torch.randn(40, 12, dtype=torch.float64, generator=generator), generator


def test_effects_of_a_linear_readout():
    """Card 45, test 2: `-z_i <d_i, w>`, and the same from integrated gradients and from ablation one by one."""
    sae, x, generator = _random_dictionary()
    w = torch.randn(12, dtype=torch.float64, generator=generator)
    z = sae.encode(x).detach()
    expected = -z * (sae.atoms @ w)
    for readout in (w, lambda v: v @ w):
        for effect in EFFECTS[:2]:
            assert (latent_effects(sae, x, readout, effect) - expected).abs().max() < 1e-6
    without = z.clone()
    without[:, 4] = 0
    shift = (sae.decode(without) - sae.decode(z)) @ w
    assert torch.allclose(latent_effects(sae, x, w)[:, 4], shift, atol=1e-12)


def test_effects_of_other_readouts():
    """Ablation against single forward passes; the path's midpoints are exact for a quadratic, whose effects add up."""
    sae, x, generator = _random_dictionary()
    z, words = sae.encode(x).detach(), torch.randn(5, 12, dtype=torch.float64, generator=generator)
    margin = zero_shot_margin(words, 2)
    logits = 100 * torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(words, dim=1).T
    assert torch.allclose(margin(x), logits[:, 2] - logits[:, [0, 1, 3, 4]].mean(1))
    found = latent_effects(sae, x, margin)
    for latent in (0, 17):
        assert torch.allclose(
            found[:, latent], margin(x - z[:, latent, None] * sae.atoms[latent]) - margin(x), atol=1e-10
        )

    def square(v):
        return v.square().sum(1)

    total = latent_effects(sae, x, square, "integrated_gradients", steps=1).sum(1)
    assert torch.allclose(total, square(x - z @ sae.atoms) - square(x), atol=1e-10)


def test_effects_behind_a_transform_are_in_the_units_of_the_activations():
    sae = train(
        3 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) + 1, "relu", n_latents=8, steps=2, l1=0.01,
        batch_size=32, progress=False, input_transform="standardise",
    )  # fmt: skip
    x, w = torch.randn(10, 6, generator=torch.Generator().manual_seed(1)), torch.arange(6.0)
    z = sae.encode(x).detach()
    one = torch.zeros_like(z)
    one[:, 3] = z[:, 3]
    shift = (sae.decode(z - one) - sae.decode(z)).detach() @ w
    assert torch.allclose(latent_effects(sae, x, w)[:, 3], shift, atol=1e-4)


RECIPE = {
    "n_latents": 4, "steps": 400, "batch_size": 128, "lr": 3e-2, "beta1": 0.5, "beta2": 0.9375, "clip_gradient": 1.0,
    "b_dec_init": "none", "dead_policy": "none", "progress": False,
}  # fmt: skip
KINDS = {
    "flat": ("relu", {"l1": 0.05}),
    "nested": (
        "relu",
        {"l1": 0.05, "objectives": "nested_dictionary,l1", "random_prefixes": 4, "sort_latents": True},
    ),
    "pursuit": ("matching_pursuit", {"k": 2, "tol": 0.05}),
}


def _drawn(n, hierarchical, part):
    generator = torch.Generator().manual_seed(part)
    there = torch.rand(n, 4, generator=generator) < torch.tensor([0.25, 0.2 if hierarchical else 0.05, 0.05, 0.05])
    if hierarchical:
        there[:, 1] &= there[:, 0]
    return (there.double() @ FEATURES).float(), there


def _trained(kind, hierarchical, seed):
    """The absorption of the parent by a trained dictionary, and the largest rate there can be."""
    family, options = KINDS[kind]
    sae = train(_drawn(20_000, hierarchical, 0)[0], family, **RECIPE, **options, seed=seed)
    x, there = _drawn(2000, hierarchical, 1)
    main = int((sae.atoms.double() @ PARENT).argmax())
    possible = (there[:, 0] & there[:, 1]).sum() / there[:, 0].sum()
    return absorption(sae, x, there[:, 0], PARENT, main=[main]), float(possible)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_dictionary_absorbs_and_a_nested_one_does_not(seed):
    """Card 45, test 4: ReLU with L1 absorbs every child (.163 of the rows), Matryoshka none, nor does either of them
    where features are independent.

    Matching pursuit, against the card, absorbs just as much here: with fixed strengths the atom `(parent + child) / sqrt
    2` leaves no residual, so that its first step is its last.
    """
    flat, possible = _trained("flat", True, seed)
    assert flat.rate == pytest.approx(possible)
    assert flat.graded == pytest.approx(possible, abs=0.01)
    assert _trained("nested", True, seed)[0].rate == 0
    assert _trained("pursuit", True, seed)[0].rate == pytest.approx(possible)
    for kind in ("flat", "nested"):
        independent = _trained(kind, False, seed)[0]
        assert (independent.rate, independent.missed) == (0, 0)
        assert independent.graded < 0.01


def test_a_split_concept_is_not_absorbed():
    """Card 45, test 5: two latents for disjoint halves of one concept are its main latents, and no row is missed."""
    there = torch.zeros(400, 3, dtype=torch.bool)  # the concept, its first and its second kind
    there[:100, 0] = there[:50, 1] = there[50:100, 2] = True
    x = there.double() @ FEATURES[:3]
    sae = ReLUDictionary(D, 4).double()
    with torch.no_grad():
        for latent in (0, 1):
            sae.W_dec[latent] = (PARENT + FEATURES[1 + latent]) / math.sqrt(2)
            sae.W_enc[:, latent] = math.sqrt(2) * FEATURES[1 + latent]
        sae.W_dec[2:] = sae.W_enc[:, 2:].T.copy_(FEATURES[2:])
        sae.b_enc[2:] = -2.0  # silent
    assert (sae(x) - x).abs().max() < 1e-14
    splits = feature_splits(sae.encode(x), there[:, 0], held_out=0.0)
    assert sorted(splits.latents) == [0, 1]
    assert splits.f1 == pytest.approx((2 / 3, 1.0))
    for effect in EFFECTS:
        found = absorption(sae, x, there[:, 0], PARENT, effect=effect)
        assert (found.rate, found.graded, found.missed) == (0, 0, 0)
        alone = absorption(sae, x, there[:, 0], PARENT, effect=effect, main=splits.latents[:1])
        assert alone.rate == 0.5  # what would be said of one half alone


def test_one_absorber_of_a_fifth_counts_as_a_split():
    """The protocol's own limit: a second latent for a share `s` adds `s / (2 - s)` to F1, .11 for a fifth."""
    codes = _by_hand(1.0).encode(X).detach()
    splits = feature_splits(codes, THERE[:, 0], held_out=0.0)
    assert sorted(splits.latents) == [0, 1]
    alone = 2 * 0.8 / 1.8
    assert k_sparse_probe(codes[:, :1], THERE[:, 0], 1, held_out=0.0).f1 == pytest.approx(alone)
    assert len(feature_splits(codes, THERE[:, 0], tau=0.5).latents) == 1
    assert absorption(_by_hand(1.0), X, THERE[:, 0], PARENT).rate == 0


def test_probes():
    """The direction of a probe, and F1 by hand: a latent that fires on half of the concept and nowhere else has 2/3."""
    y = THERE[:, 0]
    probe = linear_probe(X, y, C=1000.0)
    assert torch.equal(probe.score(X) > 0, y)
    assert probe.direction @ PARENT > 0.9
    half = (torch.arange(400) < 50).double()
    found = k_sparse_probe(torch.stack([-y.double(), half], 1), y, 1, held_out=0.0)
    assert found.latents == (1,)  # the largest signed weight, though the other latent is better and negative
    assert found.f1 == pytest.approx(2 / 3)
    scaled = k_sparse_probe(1000 * torch.stack([-y.double(), half], 1), y, 1, held_out=0.0)
    assert scaled.weight == pytest.approx(found.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, y: absorption(s, X * math.nan, y, PARENT), "NaN or infinite"),
        (lambda s, y: absorption(s, X, y[:-1], PARENT), r"\[400, 50\] and labels \[399\]"),
        (lambda s, y: absorption(s, X, torch.ones_like(y), PARENT), "400 of 400 labels are positive"),
        (lambda s, y: absorption(s, X, y * 2, PARENT), "give bool, or 0 and 1"),
        (lambda s, y: absorption(s, X, y, PARENT[:-1]), r"direction is \[49\]"),
        (lambda s, y: absorption(s, X, y, PARENT * 0), "not 0"),
        (lambda s, y: absorption(s, X[:, 1:], y, PARENT), r"reads \[N, 50\]"),
        (lambda s, y: absorption(s, X, y, PARENT, effect="nonsense"), "'nonsense' is unknown; use one of ablation"),
        (lambda s, y: absorption(s, X, y, PARENT, effect="projection", readout=PARENT), "reads nothing out"),
        (lambda s, y: absorption(s, X, y, PARENT, margin=-1.0), "margin=-1.0"),
        (lambda s, y: absorption(s, X, y, PARENT, main=[4]), "latents of 0 to 3"),
        (lambda s, y: absorption(s, X, y, PARENT, main=[0], readout=-PARENT), "lower where the concept is"),
        (lambda s, y: absorption(s, X, y, PARENT, main=[0], readout=lambda v: v), "one finite number a row"),
        (lambda s, y: latent_effects(s, X, PARENT, "projection"), "use 'ablation' or 'integrated_gradients'"),
        (lambda s, y: latent_effects(s, X, PARENT[1:]), r"read-out is \[49\]"),
        (lambda s, y: zero_shot_margin(FEATURES, 4), "concept=4"),
        (lambda s, y: linear_probe(X, y, C=0), "C=0 must be above 0"),
        (lambda s, y: k_sparse_probe(X, y, 51), "number of latents, 50"),
        (lambda s, y: k_sparse_probe(X, y, 1, l1=0), "l1=0 must be above 0"),
        (lambda s, y: k_sparse_probe(X, y, 1, held_out=1.0), "held_out=1.0"),
        (lambda s, y: k_sparse_probe(X, torch.arange(400) < 1, 1), "two of either kind"),
        (lambda s, y: feature_splits(X, y, max_k=0), "max_k=0"),
    ],
)
def test_what_cannot_be_answered_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(_by_hand(1.0), THERE[:, 0])
