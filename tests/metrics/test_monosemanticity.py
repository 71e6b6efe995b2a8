"""The monosemanticity score: its pairwise definition, closed forms, invariances, intervals, and what it is for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlsae.dictionaries.base import Codes
from vlsae.metrics.monosemanticity import MonosemanticitySums, monosemanticity
from vlsae.training import train
from vlsae.world import planted, scenes


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _by_pairs(z, embeddings, floor=None):
    """The definition: min-max scaling, then a loop over all pairs of images."""
    z, e = z.double().numpy(), F.normalize(embeddings.double(), dim=1).numpy()
    low = z.min(0) if floor is None else np.full(z.shape[1], floor)
    a = (z - low) / (z.max(0) - low)
    above, below = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for n in range(len(z)):
        for m in range(n + 1, len(z)):
            above += a[n] * a[m] * (e[n] @ e[m])
            below += a[n] * a[m]
    return above / below


def _alike(groups, cosine):
    """Unit vectors: `groups[g]` ones of exactly this cosine within a group, cosine 0 across."""
    size, n = sum(groups), len(groups)
    own, common = torch.eye(size + n)[:size], torch.eye(size + n)[size:]
    group = torch.repeat_interleave(torch.arange(n), torch.tensor(groups))
    return cosine**0.5 * common[group] + (1 - cosine) ** 0.5 * own


def _sparse(n, n_latents, seed, share=0.2):
    values = torch.rand(n, n_latents, generator=_generator(seed)) + 0.1
    return values * (torch.rand(n, n_latents, generator=_generator(seed + 1)) < share)


@pytest.mark.parametrize("kind", ["sparse", "raw", "signed", "far"])
def test_it_is_the_pairwise_definition(kind):
    """Equal to the loop in one batch, in batches, merged, from codes and from dense tensors.

    1e-9 and not 1e-6: only "far", whose mean is 1,000 ranges from 0, loses six digits of double precision's sixteen.
    """
    z = {
        "sparse": _sparse(60, 7, 1),
        "raw": torch.randn(60, 7, generator=_generator(3)),
        "signed": _sparse(60, 7, 4) * torch.randn(60, 7, generator=_generator(6)).sign(),
        "far": 1000 + torch.rand(60, 7, generator=_generator(7)),
    }[kind]
    e = torch.randn(60, 5, generator=_generator(8)) + 0.5
    expected = pytest.approx(_by_pairs(z, e), abs=1e-9)
    assert monosemanticity(z, e).scores.numpy() == expected
    assert monosemanticity(Codes.from_dense(z), e).scores.numpy() == expected
    parts = [MonosemanticitySums(7, 5) for _ in range(2)]
    for i, at in enumerate(torch.arange(60).split(13)):
        parts[i % 2].add(Codes.from_dense(z[at]) if i % 3 else z[at], e[at])
    parts[0].merge(parts[1])
    assert parts[0].scores().numpy() == expected
    assert parts[0].n == 60 and torch.equal(parts[0].above, (z > z.amin(0)).sum(0))


def test_known_values():
    """Card 46: one cluster of cosine c gives c, two of m images each `((m - 1) c + m 0) / (2 m - 1)`."""
    m, c = 5, 0.7
    e = _alike([m, m, m], c)
    one, two, every = torch.zeros(3 * m, 3).unbind(1)
    one[:m] = torch.rand(m, generator=_generator(1)) + 0.1  # whatever the strengths
    two[: 2 * m] = 3.0
    every[:] = 1.0
    z = torch.stack([one, two, every], 1)
    found = monosemanticity(z, e)
    assert found.scores[:2].tolist() == pytest.approx([c, (m - 1) * c / (2 * m - 1)], abs=1e-7)
    assert found.scores[2].isnan()
    assert found.metric.value == pytest.approx(found.scores[:2].mean().item())
    assert found.metric.baselines["undefined"] == pytest.approx(1 / 3)
    # a latent alike on all images says nothing, and from a floor of 0 it gets the mean cosine of all pairs
    constant = monosemanticity(z, e, floor=0).scores[2].item()
    assert constant == pytest.approx(found.metric.baselines["all_pairs"], abs=1e-9)
    assert constant == pytest.approx((m - 1) * c / (3 * m - 1), abs=1e-7)


def test_what_changes_nothing():
    """Card 46: order, scale, shift, a rotation of the space, lengths of embeddings, and images on which all is silent."""
    z, e = _sparse(80, 6, 10), torch.randn(80, 8, generator=_generator(12)) + 0.3
    scores = monosemanticity(z, e).scores
    order, turn = torch.randperm(80, generator=_generator(13)), torch.linalg.qr(torch.randn(8, 8))[0]
    scale, lengths = torch.rand(6, generator=_generator(14)) + 0.1, torch.rand(80, 1, generator=_generator(15)) + 0.1
    for other in (
        monosemanticity(z[order], e[order]),
        monosemanticity(z * scale, e),
        monosemanticity(z + 5 * scale, e),
        monosemanticity(z, e @ turn),
        monosemanticity(z, e * lengths),
        monosemanticity(torch.cat([z, torch.zeros(40, 6)]), torch.cat([e, torch.randn(40, 8)])),
    ):
        assert torch.allclose(other.scores, scores, atol=1e-5)  # products of float32 inputs


def test_what_has_no_score():
    """A latent that is silent, constant, or above its minimum on one image: NaN, left out of means, counted."""
    z = torch.zeros(6, 4)
    z[:, 1], z[2, 2], z[:3, 3] = 0.3, 5.0, 1.0
    e = torch.randn(6, 3, generator=_generator(16))
    for codes in (z, Codes.from_dense(z)):
        found = monosemanticity(codes, e, bootstrap=20)
        assert found.scores.isnan().tolist() == [True, True, True, False]
        assert found.low.isnan().tolist() == found.high.isnan().tolist() == [True, True, True, False]
        assert found.above.tolist() == [0, 0, 1, 3]
        assert found.metric.value == found.scores[3].item()
    dead = monosemanticity(torch.zeros(6, 2), e, bootstrap=5).metric
    assert np.isnan(dead.value) and dead.baselines["undefined"] == 1


def test_a_mixed_latent_scores_below_a_pure_one():
    """Planted concepts, seen by another encoder; of a latent that sums m of them, about 1/m of the pairs share one."""
    world = planted(d=32, n_atoms=40, k=1, seed=3)
    _, z = world.sample(4000)
    e = z @ F.normalize(torch.randn(40, 64, generator=_generator(17)), dim=1)
    mixed = torch.stack([z[:, : m + 1].sum(1) for m in range(4)], 1)
    scores = monosemanticity(mixed, e).scores
    assert scores[0].item() == pytest.approx(1, abs=1e-6)
    # two directions of 64 have a cosine of standard deviation 1/8; up to six pairs are averaged, shares of pairs vary
    assert scores[1:].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 4], abs=0.1)


def test_latents_of_a_trained_dictionary_score_above_raw_neurons():
    """Card 46, on planted data with two concepts an image: raw neurons mix all of them and stay near all pairs' cosine."""
    world = planted(d=24, n_atoms=32, k=2, seed=5)
    x, z = world.sample(8000)
    e = z @ torch.randn(32, 48, generator=_generator(18))
    sae = train(x, "topk", n_latents=32, k=2, steps=600, batch_size=512, lr=3e-3, progress=False)
    raw, learned = monosemanticity(x, e).metric, monosemanticity(sae.encode_sparse(x), e).metric
    true = monosemanticity(z, e).metric
    assert raw.value == pytest.approx(raw.baselines["all_pairs"], abs=0.05)
    assert learned.value > 0.9 * true.value > 5 * raw.value


def test_families_on_the_tiny_clip(tiny):
    """Class tokens of 300 scenes of one object, compared by what is truly in them: an encoder that is not the model's.

    Measured: raw neurons .00, TopK .15, BatchTopK .17, nested .18. Images that share one of three or four concepts have
    a cosine of about .3, and two in the same object and colour .7: no latent of a single concept could come near 1.
    """
    shown = scenes(300, seed=31, n_objects=(1, 0, 0, 0))
    x = tiny.tokens([scene.image for scene in shown])[:, 0]
    concepts = [{w for kind in ("object", "group", "color", "background") for w in s.labels[kind]} for s in shown]
    words = sorted(set.union(*concepts))
    truth = torch.tensor([[float(word in there) for word in words] for there in concepts])
    options = {"n_latents": 192, "steps": 200, "batch_size": 150, "lr": 3e-3, "progress": False, "seed": 1}

    def score(codes):
        return monosemanticity(codes, truth - truth.mean(0), bootstrap=40).metric

    raw = score(x)
    for family in ("topk", "batch_topk", "nested_dictionary"):
        sae = train(x, family, k=4, input_transform="centre_sqrt_d", **options)
        found = score(sae.encode_sparse(x))
        assert raw.ci[1] < 0.02 < 0.1 < found.ci[0]
        assert found.baselines["undefined"] < 0.5


def test_intervals_cover_the_truth():
    """40 samples of 150 images from a population of 6,000, whose scores are the truth; six latents.

    Of 240 intervals 95 % would cover; percentile intervals of about 65 active images fall some points short (.933 measured),
    and latents of one sample are dependent, so that .9 is asked for. Not all: intervals as wide as that would be useless.
    """
    n = 6000
    kind = torch.randint(4, (n,), generator=_generator(20))
    e = F.normalize(torch.randn(4, 16, generator=_generator(21)), dim=1)[kind]
    e = F.normalize(e + 0.15 * torch.randn(n, 16, generator=_generator(22)), dim=1)
    likely = torch.tensor([0.1, 0.3, 0.9])[(kind[:, None] + torch.arange(6)) % 3]
    z = (torch.rand(n, 6, generator=_generator(23)) < likely) * (0.5 + torch.rand(n, 6, generator=_generator(24)))
    truth = monosemanticity(z, e)
    latents, means = [], []
    for sample in torch.randperm(n, generator=_generator(25)).split(150):
        found = monosemanticity(z[sample], e[sample], bootstrap=200, seed=1)
        latents.append((found.low <= truth.scores) & (truth.scores <= found.high))
        means.append(found.metric.ci[0] <= truth.metric.value <= found.metric.ci[1])
    assert 0.9 < torch.stack(latents).double().mean() < 0.99
    assert np.mean(means) > 0.85  # 40 intervals: .95 less three standard deviations of .034
    again = monosemanticity(z[:150], e[:150], bootstrap=20, seed=2)
    assert torch.equal(again.low, monosemanticity(z[:150], e[:150], bootstrap=20, seed=2).low)


def _few_images(seed, n=600, n_latents=100):
    """Concepts on about six images each, alike in direction, and stray activations of others."""
    generator = _generator(seed)
    directions = F.normalize(torch.randn(n_latents, 16, generator=_generator(30)), dim=1)
    own, stray = torch.randint(n_latents, (2, n), generator=generator)
    e = F.normalize(directions[own] + 0.25 * torch.randn(n, 16, generator=generator), dim=1)
    z = torch.zeros(n, n_latents)
    z[torch.arange(n), own] = torch.rand(n, generator=generator) + 0.1
    z[torch.arange(n), stray] += 0.3 * (torch.rand(n, generator=generator) < 0.3)
    return z, e


def test_intervals_of_rare_latents_hold_their_scores():
    """40 samples of 100 latents active on some eight images; plain percentiles miss the mean itself in 3 of them.

    The other target is the expected score of a sample of this size, since scores of few images are biased themselves
    (.355, .381 in 40,000 images). Its coverage: .75 measured, plain percentiles .625, reflected ones .725; all
    are too narrow, as `above` warns. Asked is .75 less two standard deviations of .068.
    """
    expected = np.mean([monosemanticity(*_few_images(1000 + seed)).metric.value for seed in range(100)])
    covered = []
    for seed in range(40):
        found = monosemanticity(*_few_images(seed), bootstrap=40, seed=seed)
        known = ~found.scores.isnan()
        assert ((found.low <= found.scores) & (found.scores <= found.high))[known].all()
        assert found.metric.ci[0] <= found.metric.value <= found.metric.ci[1]
        covered.append(found.metric.ci[0] <= expected <= found.metric.ci[1])
    assert np.mean(covered) > 0.75 - 2 * 0.068, f"{sum(covered)} of {len(covered)} seeds cover the expectation"


def test_messages():
    z, e = torch.rand(5, 3), torch.rand(5, 2)
    with pytest.raises(ValueError, match=r"Codes are \[5, 3\] and embeddings \[4, 2\]; expected \[B, 3\]"):
        monosemanticity(z, e[:4])
    with pytest.raises(ValueError, match="1 images with bootstrap=0"):
        monosemanticity(z[:1], e[:1])
    with pytest.raises(ValueError, match="rows of zeros; leave such images out"):
        monosemanticity(z, e * torch.tensor([[1.0], [1], [0], [1], [1]]))
    with pytest.raises(ValueError, match="The floor 0.0 lies above the activation -0.5"):
        monosemanticity(torch.tensor([[-0.5], [1.0]]), e[:2], floor=0)
    with pytest.raises(ValueError, match="Sums of 3 latents and width 2 cannot join"):
        MonosemanticitySums(3, 3).merge(MonosemanticitySums(3, 2))
