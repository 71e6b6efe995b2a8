"""Aggregates against the dense definition, their identities, and what does not count."""

import numpy as np
import pytest
import torch

from tests.adaptation.comparison.planted import aggregates
from vlsae.adaptation.comparison.aggregation import aggregate, aggregate_codes, aggregate_sweep
from vlsae.adaptation.comparison.gains import harmonic_mean, relative_gain
from vlsae.adaptation.comparison.masking_ranks import class_ranking, dataset_ranking, random_ranking
from vlsae.adaptation.comparison.remapping import label_entropies, rank_table, remapping
from vlsae.dictionaries import Codes
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.world import scenes

LABELS = [5, 2, 5, 2, 9, 5]
SITE = "vision.1.resid_post"


@pytest.fixture(scope="module")
def sae():
    return ReLUDictionary(192, 64, seed=1)


@pytest.fixture(scope="module")
def images():
    return scenes(6, seed=4)


@pytest.fixture(scope="module")
def swept(tiny, sae, images):
    return aggregate_sweep(tiny, sae, images, LABELS, operators=("count", "mean", "max"), taus=(0, 0.2, 1.0), batch_size=4,
                           site=SITE, progress=False)  # fmt: skip


def test_against_the_dense_definition(tiny, sae, images, swept):
    h = sae.encode(tiny.tokens(list(images), SITE)).detach().numpy()
    assert list(swept) == ["count>0", "count>0.2", "count>1", "mean", "max"]
    for tau in (0, 0.2, 1.0):
        a = swept[f"count>{tau:g}"]
        margin = (np.abs(h - tau) < 1e-4).sum(1)  # tokens that rounding of other batches may move across
        assert (np.abs(a.image.toarray() - (h > tau).sum(1)) <= margin).all()
        assert a.image.max() <= a.n_tokens == 65
    assert swept["mean"].image.toarray() == pytest.approx(h.mean(1), abs=1e-5)
    assert swept["max"].image.toarray() == pytest.approx(h.max(1), abs=1e-4)


def test_sums_are_exact(swept):
    """`a_D = sum_c a_c = sum_i a_i`, in integers."""
    a = swept["count>0.2"]
    assert a.classes.tolist() == [2, 5, 9] and a.class_images.tolist() == [2, 3, 1]
    assert np.array_equal(a.dataset, a.image.toarray().sum(0)) and a.dataset.sum() > 0
    assert np.array_equal(a.dataset, a.by_class.toarray().sum(0))
    assert np.array_equal(a.by_class.toarray()[1], a.image.toarray()[[0, 2, 5]].sum(0))


def test_batches_do_not_matter():
    z = torch.rand(6 * 7, 30, generator=torch.Generator().manual_seed(0)).sub(0.5).relu()
    whole = aggregate_codes([(Codes.from_dense(z), 6)], LABELS)["count>0.2"]
    parts = aggregate_codes([(Codes.from_dense(z[:7]), 1), (Codes.from_dense(z[7:]), 5)], LABELS)["count>0.2"]
    assert np.array_equal(whole.image.toarray(), (z > 0.2).reshape(6, 7, 30).sum(1).numpy())
    assert (whole.image != parts.image).nnz == 0


def test_prompt_tokens_do_not_count(tiny, sae, images, swept):
    class Prompted:
        token_roles = (*tiny.token_roles, "prompt", "prompt")

        def tokens(self, batch, site):
            tokens = tiny.tokens(batch, site)
            return torch.cat([tokens, 100 * torch.ones_like(tokens[:, :2])], 1)

    a = aggregate(Prompted(), sae, images, LABELS, site=SITE, batch_size=4, progress=False)
    assert a.n_tokens == 65
    assert (a.image != swept["count>0.2"].image).nnz == 0


def test_pixels_are_images_too(tiny, sae, images, swept):
    a = aggregate(tiny, sae, tiny.pixels(list(images)), LABELS, site=SITE, batch_size=4, progress=False)
    assert (a.image != swept["count>0.2"].image).nnz == 0


def test_negative_codes_do_not_count_but_cancel():
    z = torch.tensor([[-3.0], [1.0], [-3.0], [0.0]])
    found = aggregate_codes([(Codes.from_dense(z), 2)], [0, 0], operators=("count", "mean", "max"))
    assert [a.image.toarray().ravel().tolist() for a in found.values()] == [[1, 0], [-1, -1.5], [1, 0]]
    with pytest.raises(ValueError, match="negative"):
        label_entropies(found["mean"], found["mean"])


def test_mistakes_are_told(tiny, sae, images):
    with pytest.raises(ValueError, match="not its name"):
        aggregate(tiny, sae, images, ["a"] * 6, site=SITE, progress=False)
    with pytest.raises(ValueError, match="5 labels were given for 6 images"):
        aggregate(tiny, sae, images, [0] * 5, site=SITE, progress=False)
    with pytest.raises(ValueError, match="vision tower"):
        aggregate(tiny, sae, images, LABELS, site="text.0.resid_post", progress=False)
    with pytest.raises(ValueError, match="use some of count, mean, max"):
        aggregate(tiny, sae, images, LABELS, operator="median", site=SITE, progress=False)


def test_remapping_of_a_planted_exchange():
    """Class 0 takes a latent of class 1 and a new one in place of its own; class 1 stays as it is."""
    before = aggregates([[9, 8, 7, 0, 0, 0, 0], [0, 0, 0, 9, 8, 7, 0]], [0, 1])
    after = aggregates([[9, 0, 0, 8, 0, 0, 7], [0, 0, 0, 9, 8, 7, 0]], [0, 1])
    found = remapping(before, after, k=3)
    assert found.matrix == pytest.approx(np.array([[1 / 3, 1 / 3], [0, 1]]))
    assert np.array_equal(found.base_matrix, np.eye(2))
    assert found.kept == pytest.approx([1 / 3, 1]) and found.borrowed == pytest.approx([1 / 3, 0])
    assert found.new == pytest.approx([1 / 3, 0])
    assert found.borrowings.tolist() == [[0, 3, 1]]
    same = remapping(before, before, k=3)
    assert same.kept.tolist() == [1, 1] and same.borrowings.shape == (0, 3)
    table = rank_table(before, after, k=3)
    own = table.classes == 0
    assert table.latents[own].tolist() == [0, 1, 2, 3, 6]
    assert table.rank_before[own].tolist() == [1, 2, 3, -1, -1]
    assert table.rank_after[own].tolist() == [1, -1, -1, 2, 3]


def test_label_entropy_closed_forms():
    """0 for one class, ln 3 for all alike, ln 2 for two of three, NaN where silent."""
    one = aggregates([[4, 2, 1, 0], [0, 2, 1, 0], [0, 2, 0, 0]], [3, 5, 8])
    other = aggregates([[4, 0, 1, 1], [4, 0, 1, 0], [4, 0, 1, 0]], [3, 5, 8])
    before, after = label_entropies(one, other)
    assert before == pytest.approx([0, np.log(3), np.log(2), np.nan], nan_ok=True)
    assert after == pytest.approx([np.log(3), np.nan, np.log(3), 0], nan_ok=True)


def test_rankings_hold_every_latent_once():
    a = aggregates([[0, 3, 1, 1, 0], [2, 0, 0, 0, 0]], [7, 8])
    assert class_ranking(a, 7).order.tolist() == [1, 2, 3, 0, 4] and class_ranking(a, 7).n_active == 3
    assert dataset_ranking(a).top(2).tolist() == [1, 0]
    drawn = random_ranking(a, 5)
    assert sorted(drawn.top(5).tolist()) == [0, 1, 2, 3, 4] and drawn.order[-1] == 4
    assert np.array_equal(drawn.order, random_ranking(a, 5).order)
    assert len({tuple(random_ranking(a, seed).order) for seed in range(20)}) > 10
    with pytest.raises(ValueError, match="k=6"):
        drawn.top(6)
    with pytest.raises(ValueError, match="Class 1 has no images"):
        class_ranking(a, 1)


def test_gains_by_hand():
    assert relative_gain(np.array([42.61, 50.0, 80.0]), np.array([73.07, 50.0, 70.0])) == pytest.approx(
        [0.53076, 0, -0.5], abs=1e-5
    )
    assert np.isnan(relative_gain(100.0, 100.0))
    assert (
        harmonic_mean(60.0, 60.0) == 60
        and harmonic_mean(0.0, 0.0) == 0
        and harmonic_mean(100.0, 50.0) == pytest.approx(200 / 3)
    )
    with pytest.raises(ValueError, match="per cent"):
        relative_gain(-1.0, 50.0)
