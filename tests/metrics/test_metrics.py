"""Scores against scikit-learn, brute force and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vlsae.activations.memory import TensorActivations
from vlsae.dictionaries import Codes
from vlsae.dictionaries.projection import ProjectionDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.metrics import Metric, auroc, localise, reconstruction, spliced_zero_shot
from vlsae.metrics.localisation import _rank_sums, average_precision, best_columns, best_iou
from vlsae.metrics.loss_recovered import loss_recovered
from vlsae.world import concepts, scenes


@st.composite
def _scored(draw):
    n = draw(st.integers(4, 40))
    scores = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))  # few values: many ties
    truth = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    truth[0], truth[1] = True, False
    return np.array(scores, float), np.array(truth)


@settings(max_examples=80, deadline=None)
@given(_scored())
def test_auroc_and_average_precision_are_sklearns(case):
    scores, truth = case
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(_scored())
def test_best_iou_is_the_brute_force_best(case):
    scores, truth = case
    brute = max(((scores >= t) & truth).sum() / ((scores >= t) | truth).sum() for t in np.unique(scores))
    value, threshold = best_iou(scores, truth)
    assert value == pytest.approx(brute)
    assert ((scores >= threshold) & truth).sum() / ((scores >= threshold) | truth).sum() == pytest.approx(value)


def test_auroc_of_one_kind_is_nan():
    assert np.isnan(auroc(np.arange(3.0), np.ones(3, bool)))
    assert np.isnan(auroc(np.zeros((3, 2)), np.zeros(3, bool))).all()


def test_localise_finds_planted_columns():
    """Column 5 is concept 0, column 2 turned round is concept 1, concept 2 has only noise."""
    rng = np.random.default_rng(0)
    owner = rng.choice([-1, 0, 1, 2], (200, 16), p=[0.7, 0.1, 0.1, 0.1])
    x = torch.from_numpy(rng.normal(size=(200, 16, 8))).float()
    x[..., 5] += 20 * torch.from_numpy(owner == 0)
    x[..., 2] -= 20 * torch.from_numpy(owner == 1)
    found = localise(lambda v: v, x, owner, 4, signed=True)
    assert found.concepts == [0, 1, 2]
    assert found.columns[:2] == [5, -2 - 2]
    assert found.auroc[:2] == [1.0, 1.0]
    assert found.pointing[:2] == [1.0, 1.0]
    assert min(found.iou[:2]) > 0.9  # the other half's best threshold cuts off a few of 20 +- 1
    assert found.auroc[2] < 0.8  # .75: low in column 5, which half of the other objects' patches are high in
    assert found.share_above(0.95) == pytest.approx(2 / 3)
    unsigned = localise(lambda v: v, x, owner, 4)
    assert unsigned.columns[0] == 5
    assert unsigned.auroc[1] < 0.65
    with pytest.raises(ValueError, match="must be equal"):
        localise(lambda v: v, x, owner[:5], 4)


def test_choosing_and_scoring_do_not_share_images():
    """Pure noise, 2,000 columns: chosen on other images, the score is chance: .5 +- 4/sqrt(12 n) with n = 160."""
    rng = np.random.default_rng(1)
    owner = rng.choice([0, 1], (40, 8))
    found = localise(lambda v: v, torch.from_numpy(rng.normal(size=(40, 8, 2000))), owner, 2)
    assert all(abs(a - 0.5) < 0.19 for a in found.auroc)


@pytest.mark.parametrize("signed", [False, True])
def test_the_best_columns_of_sparse_codes_are_those_of_dense_ones(signed):
    """Many ties among the active and among the silent, columns that are always or never active, absent concepts."""
    rng = np.random.default_rng(2)
    z = rng.integers(-2 if signed else 0, 4, (300, 40)) * (rng.random((300, 40)) < 0.4)
    z[:, 3], z[:, 7] = 0, 1 + rng.integers(0, 2, 300)
    owner = rng.choice([0, 1, 2, 4], 300)
    codes = Codes.from_dense(torch.from_numpy(z).float())
    assert np.array_equal(best_columns(codes, owner, 6, signed), best_columns(z, owner, 6, signed))
    mine = owner == 1
    assert np.allclose(_rank_sums(codes)(mine), _rank_sums(z)(mine))
    silent = Codes.from_dense(torch.zeros(5, 3))
    assert np.allclose(_rank_sums(silent)(np.ones(5, bool)), 15)


def test_reconstruction_closed_forms():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(2, 0.5, 6)) + 9
    variance = (x - x.mean(0)).square().sum(0)
    perfect = reconstruction(ProjectionDictionary.pca(x, 6), x, batch=77)
    assert perfect["ev_centred"].value == pytest.approx(1, abs=1e-5)
    assert perfect["cosine"].value == pytest.approx(1, abs=1e-5)
    assert perfect["l0"].value == 6
    basis = ProjectionDictionary.neurons(x, 6)
    with torch.no_grad():
        basis.W_dec[4:] = 0  # two coordinates are never written back
    expected = 1 - (variance[4:].sum() / variance.sum()).item()
    assert reconstruction(basis, x)["ev_centred"].value == pytest.approx(expected, abs=1e-5)
    silent = TopKDictionary(6, 10, k=2)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
        silent.b_dec.copy_(x.mean(0))
    scores = reconstruction(silent, x)
    assert scores["ev_centred"].value == pytest.approx(0, abs=1e-6)
    assert scores["dead"].value == 1
    assert scores["dead"].higher_is_better is False


def test_reconstruction_of_a_store_is_that_of_its_tokens(store):
    sae = TopKDictionary(192, 64, k=8)
    everything = torch.cat([x for _, x in store.batches()])
    a, b = reconstruction(sae, store, batch=300), reconstruction(sae, everything)
    assert all(a[k].value == pytest.approx(b[k].value, abs=1e-6) for k in a)
    assert len(TensorActivations(everything)) == len(store)


@pytest.fixture(scope="module")
def single():
    drawn = scenes(60, seed=3, n_objects=(1, 0, 0, 0), styles="seen")
    words = concepts()["object"]
    return drawn, [words.index(s.objects[0].name) for s in drawn], words


def test_spliced_accuracy_identities(tiny, single):
    """A lossless dictionary and a kept error change nothing; all patches alike (zeros) must cost accuracy."""
    drawn, labels, words = single
    site = "vision.4.resid_post"
    x = tiny.tokens(drawn, site)[:, 1:].flatten(0, 1)
    lossless = spliced_zero_shot(
        tiny, ProjectionDictionary.pca(x, 192), drawn, labels, words, site=site, templates=("{}",)
    )
    assert lossless["original"].value == lossless["spliced"].value == lossless["error_kept"].value
    assert lossless["original"].value > 0.8
    crude = ProjectionDictionary.rotation(x, 1)
    found = spliced_zero_shot(
        tiny, crude, drawn, labels, words, site=site, templates=("{}",), modes=("original", "error_kept")
    )
    assert found["original"].value == found["error_kept"].value
    assert set(found) == {"original", "error_kept"}
    p = tiny.zero_shot(drawn, words, templates=["{}"]).argmax(1)
    assert found["original"].value == pytest.approx((p == torch.tensor(labels)).float().mean().item())


def test_loss_recovered_is_one_for_the_lossless_and_zero_for_zeros(tiny, single):
    """And between them for a crude basis, by the formula from cross-entropies of the model's own probabilities."""
    drawn, labels, words = single
    options = {"site": "vision.4.resid_post", "templates": ("{}",)}
    x = tiny.tokens(drawn, "vision.4.resid_post")[:, 1:].flatten(0, 1)
    lossless = loss_recovered(tiny, ProjectionDictionary.pca(x, 192), drawn, labels, words, **options)
    assert lossless.value == pytest.approx(1, abs=1e-3)
    nothing = TopKDictionary(192, 8, k=2)
    with torch.no_grad():
        nothing.W_dec.zero_()
    assert loss_recovered(tiny, nothing, drawn, labels, words, **options).value == 0
    crude = ProjectionDictionary.pca(x, 4)
    found = loss_recovered(tiny, crude, drawn, labels, words, **options)
    losses = []
    for edit in (lambda t: t, lambda t: torch.cat([t[:, :1], crude(t[:, 1:])], 1)):
        with tiny.edit("vision.4.resid_post", edit):
            p = tiny.zero_shot(drawn, words, templates=["{}"])[torch.arange(60), labels]
        losses.append(-p.log().mean().item())
    assert [found.baselines[mode] for mode in ("original", "spliced")] == pytest.approx(losses, rel=1e-4)
    expected = 1 - (losses[1] - losses[0]) / (found.baselines["zeroed"] - losses[0])
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert 0.2 < found.value < 1


def test_spliced_wrong_requests(tiny, single):
    drawn, labels, words = single
    sae = TopKDictionary(192, 8, k=2)
    with pytest.raises(ValueError, match="60 images and 59 labels"):
        spliced_zero_shot(tiny, sae, drawn, labels[1:], words, site="vision.4.resid_post")
    with pytest.raises(ValueError, match="Unknown mode 'half'"):
        spliced_zero_shot(tiny, sae, drawn, labels, words, site="vision.4.resid_post", modes=("half",))


def test_metric_as_dict_is_flat():
    metric = Metric("a", 0.5, 10, "half", baselines={"chance": 0.1}, ci=(0.4, 0.6))
    assert metric.as_dict() == {"value": 0.5, "n": 10, "ci": [0.4, 0.6], "chance": 0.1, "definition": "half",
                                "reference": "", "higher_is_better": True}  # fmt: skip
