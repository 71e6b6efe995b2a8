"""Families that differ in which pre-activations they keep: BatchTopK, AbsTopK, JumpReLU, and the two Matryoshkas."""

import json

import pytest
import torch

from tests.training.test_training import matched_cosine
from vlsae.dictionaries import load_dictionary
from vlsae.dictionaries.abs_topk import AbsTopKDictionary
from vlsae.dictionaries.batch_topk import BatchTopKDictionary
from vlsae.dictionaries.jumprelu import Active, Jump, JumpReLUDictionary
from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
from vlsae.dictionaries.nested_sparsity import NestedSparsityMatryoshka
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.matching import stability
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.nested_dictionary import NestedDictionary
from vlsae.training.objectives.nested_sparsity import NestedSparsity
from vlsae.training.objectives.reconstruction import Reconstruction
from vlsae.world import planted

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
RECIPE = {"n_latents": 64, "steps": 2000, "batch_size": 512, "lr": 3e-3, "dead_after_tokens": 20_000, "progress": False}


def _trained(family, **options):
    truth = planted(32, 64, 3)
    return truth, train(truth.sample(40_000)[0], family, **{**RECIPE, **options})


def test_batch_topk_keeps_k_a_token_on_average_and_depends_on_the_batch_in_training_only():
    sae = BatchTopKDictionary(8, 20, k=3)
    z = sae.trace(X).z
    assert int((z > 0).sum()) == 3 * len(X)
    shuffle = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(sae.trace(X[shuffle]).z, z[shuffle], atol=1e-6)
    assert not torch.equal(sae.trace(X[:5]).z != 0, z[:5] != 0)
    assert torch.allclose(sae.encode(X[:5]), sae.encode(X)[:5], atol=1e-6)


def test_batch_topk_recovers_a_planted_dictionary_and_its_threshold_keeps_k():
    """On fresh data the stored threshold gives the trained mean L0 within 5 % (card 7, test 1)."""
    truth, sae = _trained("batch_topk", k=3, steps=3000)
    assert matched_cosine(truth.atoms, sae.atoms).mean() >= 0.95
    l0 = (sae.encode(truth.sample(4000, part=1)[0]) > 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(3, rel=0.05)


def test_batch_topk_threshold_is_saved(tmp_path):
    sae = BatchTopKDictionary(8, 20, k=3)
    sae.trace(X)
    assert load_dictionary(sae.save(tmp_path)).threshold[0] == sae.threshold[0] > 0


def test_abs_topk_is_the_best_k_term_approximation_of_an_orthonormal_basis():
    """Keeping the k largest squared coordinates leaves the sum of the others: the least possible error."""
    sae = AbsTopKDictionary(8, 8, k=3)
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    with torch.no_grad():
        sae.W_dec.copy_(q)
        sae.W_enc.copy_(q.T)
    left = (X @ q.T).square().sort(dim=1).values[:, :5].sum(1)
    assert torch.allclose((X - sae(X)).square().sum(1), left, atol=1e-5)


def test_one_signed_latent_in_place_of_an_antipodal_pair():
    """Sparse data plus c u with Gaussian c (Sun et al. 2025): TopK spends latents on u and -u, AbsTopK only one."""
    truth = planted(24, 30, 2, seed=1)
    x, _ = truth.sample(20_000)
    generator = torch.Generator().manual_seed(7)
    u = torch.nn.functional.normalize(torch.randn(24, generator=generator), dim=0)
    x = x + 1.5 * torch.randn(len(x), 1, generator=generator) * u
    found = {}
    for family in ("topk", "abs_topk"):
        sae = train(x, family, **{**RECIPE, "n_latents": 40, "k": 3, "steps": 1500})
        density = (sae.encode(x[:4000]) != 0).float().mean(0)
        along = sae.atoms @ u
        found[family] = (along.max().item(), along.min().item(), density[along.abs().argmax()].item())
    assert found["topk"][0] > 0.95
    assert found["topk"][1] < -0.95
    assert max(abs(found["abs_topk"][0]), abs(found["abs_topk"][1])) > 0.95
    assert min(abs(found["abs_topk"][0]), abs(found["abs_topk"][1])) < 0.8
    assert found["abs_topk"][2] > 0.6


def test_jumprelu_gradients_are_those_of_the_smoothed_function():
    """The mean gradient over uniform pre-activations equals the finite difference of the mean, as bandwidth -> small.

    For pre uniform on [0, 2]: E[z] falls by threshold / 2 a unit of threshold, E[active] by 1/2; 200,000 samples give
    two digits.
    """
    pre = 2 * torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor([0.7], requires_grad=True)
    Jump.apply(pre, threshold, 0.1).mean().backward()
    assert threshold.grad.item() == pytest.approx(-0.35, rel=0.05)
    threshold.grad = None
    Active.apply(pre, threshold, 0.1).mean().backward()
    assert threshold.grad.item() == pytest.approx(-0.5, rel=0.05)


def test_jumprelu_thresholds_move_and_reach_the_wanted_l0():
    truth, sae = _trained("jumprelu", target_l0=3.0, l0=1.0, start=0.05, dead_policy="auxk")
    assert (sae.threshold - 0.05).abs().median() > 0.1
    assert (sae.threshold >= 0).all()
    l0 = (sae.encode(truth.sample(4000, part=1)[0]) > 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(3, rel=0.1)
    assert matched_cosine(truth.atoms, sae.atoms).mean() >= 0.9


def test_nested_supports_and_the_widest_level_is_relu():
    sae = NestedSparsityMatryoshka(8, 20, ks=[2, 5, 20], seed=1)
    z2, z5, z20 = (sae.encode_at(X, k) for k in (2, 5, 20))
    assert ((z2 > 0) <= (z5 > 0)).all()
    assert ((z5 > 0) <= (z20 > 0)).all()
    assert torch.equal(z20, torch.relu(sae.pre(X)))
    assert torch.equal(z20, sae.encode(X))
    sae.cut = 5
    assert torch.equal(sae.encode(X), z5)
    levels = sae.trace(X).extras["levels"]
    for level, z in zip(levels, (z2, z5, z20), strict=True):
        assert torch.allclose(level, sae.decode(z), atol=1e-6)


def _step(sae):
    trace = sae.trace(X)
    return Step(sae, X, trace.pre, trace.z, trace.xhat, torch.zeros(sae.n_latents, dtype=torch.bool), trace.extras)


def test_msae_loss_by_hand():
    """Uniform and reverse weights of three levels: 1, 1, 1 and 3, 2, 1."""
    sae = NestedSparsityMatryoshka(8, 20, ks=[2, 5, 20], seed=1)
    error = Reconstruction("normalised")
    levels = [error.error(X, sae.decode(sae.encode_at(X, k))) for k in (2, 5, 20)]
    assert NestedSparsity(error)(_step(sae)).item() == pytest.approx(sum(levels).item() / 3, rel=1e-5)
    reverse = (3 * levels[0] + 2 * levels[1] + levels[2]).item() / 6
    assert NestedSparsity(error, "reverse")(_step(sae)).item() == pytest.approx(reverse, rel=1e-5)
    one = NestedSparsityMatryoshka(8, 20, ks=[20], seed=1)
    assert torch.equal(one.encode(X), ReLUDictionary.activate(one, one.pre(X)))
    with pytest.raises(ValueError, match="nesting='odd' is unknown"):
        NestedSparsity(error, "odd")


def test_a_cut_level_is_nothing_that_saelens_opens_as_another(tmp_path):
    """Without its cut it is a ReLU dictionary, with it the largest k only: SAELens must not take one for the other."""
    names = []
    for cut in (0, 2):
        folder = NestedSparsityMatryoshka(4, 8, ks=[2, 8], cut=cut).save(tmp_path / str(cut))
        names.append(json.loads((folder / "cfg.json").read_text())["architecture"])
        assert load_dictionary(folder).cut == cut
    assert names == ["standard", "nested_sparsity+cut"]


def test_moving_norms_into_the_encoder_keeps_the_function():
    sae = NestedSparsityMatryoshka(8, 20, seed=1)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.2, 3, 20)[:, None])
        sae.b_enc.normal_(generator=torch.Generator().manual_seed(2))
    before = sae(X)
    sae.constrain()
    assert torch.allclose(sae(X), before, atol=1e-5)
    assert torch.allclose(sae.atoms.norm(dim=1), torch.ones(20), atol=1e-6)


def test_msae_error_falls_with_k_and_its_first_level_finds_the_strongest():
    """Up to the true 3 concepts a token each cut adds one; the fourth to sixth have nothing to add, all 64 correct."""
    truth, sae = _trained("nested_sparsity", ks=[3, 6, 64], nesting="reverse", lr=1e-3)
    x, z = truth.sample(2000, part=1)
    errors = [(x - sae.decode(sae.encode_at(x, k))).square().sum().item() for k in (1, 2, 3, 64)]
    assert errors == sorted(errors, reverse=True)
    partner = (sae.atoms @ truth.atoms.T).argmax(1)
    strongest = partner[sae.encode_at(x, 1).argmax(1)]
    assert (strongest == z.argmax(1)).float().mean() > 0.6


def test_one_prefix_is_batch_topk():
    """Card 22: from the same seed, bit for bit."""
    options = {**RECIPE, "steps": 30, "k": 3}
    x, _ = planted(32, 64, 3).sample(4000)
    nested = train(x, "nested_dictionary", prefixes=[64], **options)
    flat = train(x, "batch_topk", **options)
    for name, weight in flat.state_dict().items():
        assert torch.equal(nested.state_dict()[name], weight), name


def test_prefix_losses_are_those_of_the_sub_dictionaries():
    sae = NestedDictionaryMatryoshka(8, 20, k=4, prefixes=[3, 10, 20], seed=1)
    error, step = Reconstruction("sum"), _step(sae)
    losses = []
    for level, m in enumerate(sae.prefixes):
        part = sae.sub_dictionary(level)
        losses.append(error.error(X, part._decode(step.z[:, :m])).item())
    assert NestedDictionary(error)(step).item() == pytest.approx(sum(losses), rel=1e-5)
    sized = sum(loss * m / 20 for loss, m in zip(losses, sae.prefixes, strict=True))
    assert NestedDictionary(error, "size")(step).item() == pytest.approx(sized, rel=1e-5)


def test_parents_come_before_their_children():
    """Bussmann et al. 2025: six parents with four children each land in the first prefixes, children after them.

    Found latents are matched to true atoms one to one; without nesting a parent's mean number is that of chance, 31.5.
    """
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(40, 40, generator=generator))[0][:30]
    parent = torch.rand(20_000, 6, generator=generator) < 0.25
    child = torch.randint(0, 4, (20_000, 6), generator=generator)
    has = parent & (torch.rand(20_000, 6, generator=generator) < 0.7)
    z = torch.cat([parent, (torch.nn.functional.one_hot(child, 4) * has[..., None]).flatten(1)], 1).float()
    x = (z * (1 + 0.1 * torch.randn(z.shape, generator=generator))) @ atoms
    options = {**RECIPE, "steps": 1200, "k": 3}
    numbers, scores = {}, {}
    for family, own in (("batch_topk", {}), ("nested_dictionary", {"prefixes": [6, 16, 64]})):
        match = stability(atoms, train(x, family, **options, **own).atoms)
        numbers[family], scores[family] = match.partners, match.scores
    nested = numbers["nested_dictionary"]
    assert scores["nested_dictionary"][:6].mean() > 0.9
    assert nested[:6].mean() < 10
    assert nested[6:].mean() > 20
    assert numbers["batch_topk"][:6].mean() > 20


def test_a_sub_dictionary_encodes_like_the_whole():
    sae = NestedDictionaryMatryoshka(8, 20, k=4, prefixes=[3, 10, 20], seed=1)
    sae.trace(X)
    assert torch.allclose(sae.sub_dictionary(1).encode(X), sae.encode(X)[:, :10], atol=1e-6)
    with pytest.raises(ValueError, match="level=3 does not exist"):
        sae.sub_dictionary(3)


def test_random_prefixes_always_hold_the_whole_and_favour_short_ones():
    """Truncated Pareto of index 1/2: the median of the law on [1, n] is (2 / (1 + n^-1/2))^2, about 3.1 for n = 64."""
    sae = NestedDictionaryMatryoshka(8, 64, k=4)
    objective, drawn = NestedDictionary(Reconstruction("sum"), random=10, seed=3), []
    step = _step(sae)
    for _ in range(200):
        widths = objective.prefixes(step)
        assert widths[-1] == 64
        drawn += widths[:-1]
        objective(step)
    assert objective.state == {"step": 200}
    assert min(drawn) == 1
    assert 2 <= sorted(drawn)[len(drawn) // 2] <= 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchTopKDictionary(4, 8, k=9), "k=9 must lie"),
        (lambda: AbsTopKDictionary(4, 8, k=0), "k=0 must lie"),
        (lambda: JumpReLUDictionary(4, 8, bandwidth=0), "bandwidth=0 must be positive"),
        (lambda: NestedSparsityMatryoshka(4, 8, ks=[4, 2]), r"ks=\[4, 2\] must rise"),
        (lambda: NestedDictionaryMatryoshka(4, 8, k=2, prefixes=[4, 6]), r"prefixes=\[4, 6\] must rise"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
