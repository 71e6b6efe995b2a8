"""One streaming pass equals the naive computation, in parts as in whole."""

import numpy as np
import pytest
import torch

from vlsae.concepts.statistics import HISTOGRAM_EDGES, LatentStatistics, latent_statistics
from vlsae.dictionaries import Codes
from vlsae.dictionaries.topk import TopKDictionary

N, CLASSES, TOP = 12, 3, 4


@pytest.fixture(scope="module")
def z():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(30, 9, N, generator=generator) * (torch.rand(30, 9, N, generator=generator) < 0.15)
    dense[:, :, 3] = 0  # a dead latent
    dense[:, :, 5] = 0
    dense[7, 2, 5] = 0.6  # a latent that fires once
    return dense


@pytest.fixture(scope="module")
def labels():
    labels = np.arange(30) % CLASSES
    labels[4] = -1
    return labels


def _collect(z, labels, sizes):
    result, start = LatentStatistics(N, CLASSES, TOP), 0
    for size in sizes:
        result.update(z[start : start + size], start, labels[start : start + size])
        start += size
    return result


def _same(a, b):
    for name in a._arrays():
        x, y = a._arrays()[name], b._arrays()[name]
        exact = np.issubdtype(x.dtype, np.integer)
        assert np.array_equal(x, y) if exact else np.allclose(x, y, rtol=1e-6), name


def test_against_the_naive_computation(z, labels):
    s, dense = _collect(z, labels, [30]), z.numpy()
    assert np.array_equal(s.token_count, (dense > 0).sum((0, 1)))
    assert np.array_equal(s.image_count, (dense > 0).any(1).sum(0))
    assert np.allclose(s.token_density, (dense > 0).mean((0, 1)))
    assert np.allclose(s.image_density, (dense > 0).any(1).mean(0))
    for latent in range(N):
        values = dense[..., latent]
        positive = values[values > 0]
        assert np.array_equal(s.histogram[latent], np.histogram(positive, HISTOGRAM_EDGES)[0])
        if len(positive) == 0:
            assert np.isnan(s.mean_activation[latent])
            assert (s.top_images[latent] == -1).all()
            assert (s.top_patches[latent] == -1).all()
            continue
        assert s.mean_activation[latent] == pytest.approx(positive.mean(), rel=1e-6)
        order = [i for i in np.argsort(-values.mean(1), kind="stable") if values[i].any()][:TOP]
        assert s.top_images[latent, : len(order)].tolist() == order
        assert (s.top_images[latent, len(order) :] == -1).all()
        flat = [i for i in np.argsort(-values.ravel(), kind="stable") if values.ravel()[i] > 0][:TOP]
        assert s.top_patches[latent, : len(flat)].tolist() == [list(divmod(i, 9)) for i in flat]
        assert np.allclose(s.top_patch_values[latent, : len(flat)], values.ravel()[flat])


def test_the_three_aggregators(z, labels):
    s, dense = _collect(z, labels, [30]), z.numpy()
    naive = {"count": (dense > 0.2).sum(1), "mean": dense.mean(1), "max": dense.max(1)}
    for name, image_value in naive.items():
        for c in range(CLASSES):
            assert np.allclose(s.class_sums[name][c], image_value[labels == c].sum(0), rtol=1e-5)
        with_label = image_value[labels >= 0]
        assert np.allclose(s.class_sums[name].sum(0), with_label.sum(0), rtol=1e-5)  # a_D = sum_c a_c = sum_i a_i
    assert s.class_images.tolist() == [10, 9, 10]
    assert (naive["count"] <= 9).all()


@pytest.mark.parametrize("sizes", [[1] * 30, [7, 7, 7, 9], [29, 1]])
def test_streaming_equals_one_shot(z, labels, sizes):
    _same(_collect(z, labels, sizes), _collect(z, labels, [30]))


def test_shards_merge_in_any_order(z, labels):
    parts = []
    for start, stop in ((0, 11), (11, 20), (20, 30)):
        part = LatentStatistics(N, CLASSES, TOP)
        part.update(z[start:stop], start, labels[start:stop])
        parts.append(part)
    merged = LatentStatistics(N, CLASSES, TOP)
    for part in (parts[2], parts[0], parts[1]):
        merged.merge(part)
    _same(merged, _collect(z, labels, [30]))
    with pytest.raises(ValueError, match="cannot be merged"):
        merged.merge(LatentStatistics(N, CLASSES, TOP + 1))


def test_ties_keep_the_lower_numbers():
    z = torch.ones(10, 2, 1)
    s = LatentStatistics(1, 0, 3)
    for i in range(10):
        s.update(z[i : i + 1], i)
    assert s.top_images[0].tolist() == [0, 1, 2]
    assert s.top_patches[0].tolist() == [[0, 0], [0, 1], [1, 0]]


def test_label_entropy_closed_forms():
    """0 for a latent of one class, ln C for one alike in all, ln 2 for two of them; spread 0 where all are alike."""
    z = torch.zeros(6, 1, 4)
    z[[0, 3], 0, 0] = 1.0
    z[:, 0, 1] = 2.0
    z[[0, 1, 3, 4], 0, 2] = 0.5
    s = LatentStatistics(4, 3, 2)
    s.update(z, 0, np.array([0, 1, 2, 0, 1, 2]))
    for aggregator in ("count", "mean", "max"):
        assert np.allclose(s.label_entropy(aggregator)[:3], [0, np.log(3), np.log(2)])
        assert np.isnan(s.class_share(aggregator)[:, 3]).all()
    assert np.allclose(s.label_std()[:2], [np.std([1, 0, 0]), 0])
    with pytest.raises(ValueError, match="Unknown aggregator 'sum'"):
        s.label_entropy("sum")


def test_without_classes_nothing_is_said_about_labels():
    s = LatentStatistics(2, 0, 3)
    s.update(torch.ones(2, 3, 2), 0)
    assert np.isnan(s.label_entropy()).all()
    assert np.isnan(s.label_std()).all()


def test_saved_and_loaded(z, labels, tmp_path):
    s = _collect(z, labels, [30])
    other = LatentStatistics.load(s.save(tmp_path))
    _same(s, other)
    assert (other.n_images, other.n_tokens) == (30, 270)
    assert np.array_equal(other.merge(s).token_count, 2 * s.token_count)
    with pytest.raises(ValueError, match="holds no statistics"):
        LatentStatistics.load(tmp_path / "none")


def test_of_a_store(store):
    sae = TopKDictionary(192, 32, k=4)
    s = latent_statistics(sae, store, n_top=5, labels=np.arange(24) % 4, n_classes=4, batch_images=5, progress=False)
    z = sae.encode(store.images(0, 24)).detach()
    assert np.array_equal(s.token_count, (z > 0).sum((0, 1)).numpy())
    assert s.n_tokens == 24 * 64
    with pytest.raises(ValueError, match="reads width 8"):
        latent_statistics(TopKDictionary(8, 8, k=1), store, progress=False)


def test_sparse_and_dense_codes_give_the_same():
    """Codes that were never dense, of either sign, in images of which some are silent."""
    z = torch.randn(9, 5, 40, generator=torch.Generator().manual_seed(3))
    z[z.abs() < 1] = 0
    z[4] = 0
    labels = np.array([0, 1, 2, 0, -1, 1, 2, 0, 1])
    dense, sparse = LatentStatistics(40, 3, 4), LatentStatistics(40, 3, 4)
    dense.update(z, 0, labels)
    sparse.add(Codes.from_dense(z[:4].flatten(0, 1)), 4, 0, labels[:4])
    sparse.add(Codes.from_dense(z[4:].flatten(0, 1)), 5, 4, labels[4:])
    for name, value in dense._arrays().items():
        assert np.allclose(value, sparse._arrays()[name], atol=1e-5), name
    assert np.array_equal(dense.image_count, (z.amax(1) > 0).sum(0).numpy())
    assert np.allclose(dense.class_sums["max"][0], z.amax(1)[[0, 3, 7]].sum(0).numpy(), atol=1e-5)
    mean = z.mean(1)
    assert np.allclose(dense.top_image_values[:, 0], mean.amax(0).clamp_min(0).numpy(), atol=1e-6)


def test_codes_and_labels_that_do_not_fit_are_refused():
    for codes, labels in ((torch.rand(2, 3, 40), None), (torch.rand(2, 3, 4), np.array([0, 7]))):
        with pytest.raises(ValueError, match="not fit statistics of 4 latents and 3 classes"):
            LatentStatistics(4, 3, 2).update(codes, 0, labels)
