"""Filters of samples and patches on a planted stream, and how tokens are counted."""

import numpy as np
import pytest
import torch

from vlsae.concepts import SampleTokens, cross_modal_weights, keep_best, keep_patches, score_patches, score_samples
from vlsae.dictionaries.base import Codes
from vlsae.metrics.localisation import auroc

N_SHARED, N_OWN, GRID = 40, 6, (4, 4)
M = N_SHARED + 2 * N_OWN  # concepts of both, of images alone (backgrounds), of texts alone (words of grammar)


class Planted:
    """Pictures of four concepts, a 2 x 2 block of patches for the first, captions of any length; a part are shuffled."""

    def __init__(self, n: int, n_matched: int, seed: int = 0, d: int = 64):
        g = np.random.default_rng(seed)
        atoms = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(7)))[0]
        self.concepts = np.array([g.permutation(N_SHARED)[:4] for _ in range(n)])
        self.told = self.concepts.copy()
        self.told[n_matched:] = np.roll(self.told[n_matched:], 1, axis=0)
        self.matched = np.arange(n) < n_matched
        self.objects = np.zeros((n, *GRID), bool)
        latents, modality, sample = [], [], []
        for i in range(n):
            row, column = g.integers(0, 3, 2)
            self.objects[i, row : row + 2, column : column + 2] = True
            patches = N_SHARED + g.integers(0, N_OWN, GRID)
            patches[self.objects[i]] = self.concepts[i]
            words = [*self.told[i], *(N_SHARED + N_OWN + g.integers(0, N_OWN, g.integers(0, 5)))]
            latents += [*patches.ravel(), *words]
            modality += [0] * patches.size + [1] * len(words)
            sample += [i] * (patches.size + len(words))
        latents, modality = torch.tensor(np.array(latents)), torch.tensor(modality)
        values = 1.2 + torch.from_numpy(g.random(len(latents))).float()
        codes = Codes(torch.arange(len(latents)), latents, values, len(latents), M)
        hidden = values[:, None] * atoms[latents % d] + 0.5 * atoms[-1 - modality]
        self.tokens = SampleTokens(codes, hidden, modality, torch.tensor(sample))

    def mean_hidden(self, side: int) -> torch.Tensor:
        """The mean hidden state of a modality in every sample."""
        of = self.tokens.sample[self.tokens.modality == side]
        total = torch.zeros(len(self.matched), self.tokens.hidden.shape[1])
        total.index_add_(0, of, self.tokens.hidden[self.tokens.modality == side])
        return total / torch.bincount(of)[:, None]


@pytest.fixture(scope="module")
def mixed():
    data = Planted(600, 300)
    return data, cross_modal_weights([Planted(300, 300, seed=1).tokens], M)


def test_the_kinds_of_planted_latents_are_found(mixed):
    _, weights = mixed
    assert set(weights.kind[:N_SHARED]) == {"cross"}
    assert set(weights.kind[N_SHARED : N_SHARED + N_OWN]) == {"image"}
    assert set(weights.kind[N_SHARED + N_OWN :]) == {"text"}
    assert weights.omega[:N_SHARED].min() > 0.8


@pytest.mark.parametrize(
    "method, over, low, high",
    [
        ("cosine", "cooccurring", 0.95, 1),
        ("cooccurring_l0", "cooccurring", 0.95, 1),
        ("cosine", "union", 0, 0.1),  # shuffled pairs hold more different concepts: never make this the default
        ("cosine", "tokens", 0.42, 0.58),
        ("l0", "cooccurring", 0.42, 0.58),
    ],
)
def test_only_co_occurring_latents_tell_matched_from_shuffled_captions(mixed, method, over, low, high):
    data, weights = mixed
    area = auroc(score_samples(data.tokens, weights, method, over).numpy(), data.matched)
    assert low <= area <= high


def test_co_occurring_is_the_default(mixed):
    data, weights = mixed
    common = [len(set(a) & set(b)) for a, b in zip(data.concepts, data.told, strict=True)]
    assert torch.equal(score_samples(data.tokens, weights), score_samples(data.tokens, weights, over="cooccurring"))
    assert score_samples(data.tokens, weights, "cooccurring_l0").tolist() == common


def test_a_model_of_the_kept_half_beats_one_of_a_random_half(mixed):
    """A linear map from images to texts, fitted on half of the data of which half is shuffled, finds unseen captions."""
    data, weights = mixed
    unseen = Planted(200, 200, seed=2)

    def found(rows) -> float:
        x, y = (data.mean_hidden(side)[rows] for side in (0, 1))
        ridge = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1]), x.T @ y)
        distance = torch.cdist(unseen.mean_hidden(0) @ ridge, unseen.mean_hidden(1))
        return float((distance.argmin(1) == torch.arange(200)).float().mean())

    kept = keep_best(score_samples(data.tokens, weights), 0.5)
    assert data.matched[kept].mean() >= 0.95
    chance = [found(torch.randperm(600, generator=torch.Generator().manual_seed(seed))[:300]) for seed in range(3)]
    assert found(kept) > max(chance) + 0.05


@pytest.mark.parametrize("method", ["cosine", "cooccurring_l0"])
def test_the_best_patches_are_the_objects(mixed, method):
    """A quarter of the patches shows what the caption tells; backgrounds are of one modality and weigh nothing."""
    data, weights = mixed
    scores = score_patches(data.tokens, weights, GRID, method)[:300]
    quarter = keep_patches(torch.ones(300, 1, 8, 8), scores, 0.25)[:, 0, ::2, ::2].bool().numpy()
    assert (quarter & data.objects[:300]).sum() / data.objects[:300].sum() >= 0.8


def test_two_images_in_a_sample_newlines_and_copies_at_a_higher_resolution():
    """Nothing counts on a number of tokens: what a token is stands in its modality and its cell."""
    latents = [0, 1, 2, 0, 1, 1, 1, 0, 2]
    #          image 1  |nl|  image 2  |  text
    modality = torch.tensor([0, 0, -1, 0, 0, 0, 0, 1, -1])
    codes = Codes(torch.arange(9), torch.tensor(latents), torch.full((9,), 2.0), 9, 3)
    tokens = SampleTokens(codes, torch.ones(9, 2), modality, torch.tensor([5, 5, 5, 5, 5, 8, 8, 5, 8]))
    weights = cross_modal_weights([tokens], 3, top_tokens=2, pairs=1, min_each=1)
    assert weights.kind.tolist() == [
        "image",
        "image",
        "dead",
    ]  # ties: the two strongest of latent 0 come first in its sample
    maps = score_patches(tokens, weights, (1, 2), "l1")
    assert maps.shape == (3, 1, 2)  # two of sample 5, one of sample 8
    cells = torch.tensor([0, 1, -1, 0, 1, 0, 1, -1, -1])
    together = score_patches(tokens, weights, (1, 2), "l1", cells=cells)
    assert together.tolist() == [[[2.0, 2.0]], [[2.0, 2.0]]]
    with pytest.raises(ValueError, match="sample 8 has 2"):
        score_patches(tokens, weights, (2, 2))
    with pytest.raises(ValueError, match="have no image token"):
        score_patches(tokens, weights, (1, 3), cells=cells)
    with pytest.raises(ValueError, match="1 samples have no text token, such as sample 8"):
        score_samples(tokens, weights)
    assert score_samples(tokens, weights, "l0").tolist() == [1.0, 1.0]


def test_patches_follow_positions_not_the_order_in_memory(mixed):
    data, weights = mixed
    rows = (data.tokens.sample < 5).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    codes = Codes(
        torch.arange(len(rows)), data.tokens.codes.latents[rows], data.tokens.codes.values[rows], len(rows), M
    )
    some = SampleTokens(codes, data.tokens.hidden[rows], *(getattr(data.tokens, name)[rows]
                        for name in ("modality", "sample", "position")))  # fmt: skip
    whole = score_patches(data.tokens, weights, GRID)
    assert torch.equal(score_patches(some, weights, GRID), whole[:5])


def test_kept_samples_and_patches_are_those_of_a_sort():
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    assert keep_best(scores, 0.4).tolist() == [1, 2]
    assert keep_best(scores, 1).tolist() == [0, 1, 2, 3, 4]
    assert keep_best(scores, 0.01).tolist() == [1]
    kept = keep_patches(torch.ones(3, 4, 4), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 0.5, fill=-1)
    assert (kept == 1).sum() == 3 * 8
    assert kept[0, 0].tolist() == [-1, -1, 1, 1]
    assert kept[0, 3].tolist() == [1, 1, -1, -1]


def test_what_cannot_be_scored_is_refused(mixed):
    data, weights = mixed
    with pytest.raises(ValueError, match="method='clip' is unknown; use one of cosine"):
        score_samples(data.tokens, weights, "clip")
    with pytest.raises(ValueError, match="over='all' is unknown"):
        score_samples(data.tokens, weights, over="all")
    with pytest.raises(ValueError, match="for method='cosine' only"):
        score_samples(data.tokens, weights, "l0", over="union")
    with pytest.raises(ValueError, match="No code is above threshold=9"):
        score_samples(data.tokens, weights, threshold=9)
    with pytest.raises(ValueError, match="method='l2' is unknown"):
        score_patches(data.tokens, weights, GRID, "l2")
    small = SampleTokens(Codes.from_dense(torch.ones(2, 3)), torch.ones(2, 2), [0, 1], [0, 0])
    with pytest.raises(ValueError, match=f"3 latents, but there are {M} weights"):
        score_samples(small, weights)
    with pytest.raises(ValueError, match="A share of 0 "):
        keep_best(torch.ones(3), 0)
    with pytest.raises(ValueError, match="or hold NaN"):
        keep_best(torch.tensor([1.0, torch.nan]), 0.5)
    with pytest.raises(ValueError, match="do not fit; give"):
        keep_patches(torch.ones(3, 8, 8), torch.ones(3, 3), 0.5)
    with pytest.raises(ValueError, match="scores hold NaN"):
        keep_patches(torch.ones(3, 4, 4), torch.full((2, 2), torch.nan), 0.5)
