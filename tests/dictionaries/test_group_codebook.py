"""Codebooks: straight-through gradients, Lloyd's step, exact codes, and groups as separate books."""

import pytest
import torch

from vlsae.dictionaries.clusters import kmeans
from vlsae.dictionaries.group_codebook import GroupCodebook
from vlsae.metrics.codes import code_precision, perplexity, usage
from vlsae.training import train
from vlsae.training.objectives import Step
from vlsae.training.objectives.commitment import Commitment

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


def test_the_gradient_goes_straight_through():
    """Card 5, test 1: the loss's gradient at the input is that at the output."""
    book, x = GroupCodebook(8, 20, k=2, groups=2, seed=1), X.clone().requires_grad_()
    out = book.bottleneck(x)
    assert torch.allclose(out, book(X), atol=1e-6)
    out.retain_grad()
    (out.sin() * torch.arange(8)).sum().backward()
    assert torch.equal(x.grad, out.grad)
    assert book.codes.grad.abs().sum() > 0


def test_one_full_batch_step_is_a_step_of_kmeans():
    """Card 5, test 2: at rate `1 / (2 share)` the commitment's gradient moves each code to the mean of its vectors."""
    book = GroupCodebook(8, 5, k=1, seed=2)
    trace = book.trace(X)
    dead = torch.zeros(5, dtype=torch.bool)
    Commitment()(Step(book, X, trace.pre, trace.z, trace.xhat, dead)).backward()
    share = trace.z.mean(0)
    used = share > 0
    moved = book.codes[0] - book.codes.grad[0] / (2 * share.clamp_min(1e-9))[:, None]
    means = (trace.z.T @ X) / trace.z.sum(0)[:, None]
    assert used.sum() > 2
    assert torch.allclose(moved[used], means[used], atol=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_codes_reproduce_themselves_and_sum_is_k_times_mean(reduce):
    """Card 5, test 3: a vector that is a unit code comes back bit for bit."""
    book = GroupCodebook(8, 20, k=1, reduce=reduce, seed=1)
    with torch.no_grad():
        book.codes.copy_(torch.nn.functional.normalize(book.codes, dim=-1))
    assert torch.equal(book(book.atoms), book.atoms)
    both = [GroupCodebook(8, 20, k=3, reduce=r, seed=1)(X) for r in ("sum", "mean")]
    assert torch.allclose(both[0], 3 * both[1], atol=1e-5)


def test_groups_are_separate_books():
    """Card 5, test 4: as if each slice had its own; a change of one slice stays there."""
    book = GroupCodebook(8, 20, k=2, groups=2, seed=1)
    z = book.encode(X)
    for g in range(2):
        own = GroupCodebook(4, 10, k=2)
        with torch.no_grad():
            own.codes.copy_(book.codes[g : g + 1])
        part = X[:, 4 * g : 4 * g + 4]
        assert torch.equal(own.encode(part), z[:, 10 * g : 10 * g + 10])
        assert torch.allclose(own(part), book(X)[:, 4 * g : 4 * g + 4], atol=1e-6)
    changed = X.clone()
    changed[:, :4] = -changed[:, :4]
    assert torch.equal(book(changed)[:, 4:], book(X)[:, 4:])
    assert torch.allclose(book.decode(z), z @ book.W_dec, atol=1e-5)


def test_codes_can_be_forced_and_disabled():
    book = GroupCodebook(8, 20, k=2, groups=2, seed=1)
    z = book.encode(X)
    forced = book.force(z, [3])
    assert (forced[:, :10].argmax(1) == 3).all()
    assert (forced[:, :10].sum(1) == 1).all()
    assert torch.equal(forced[:, 10:], z[:, 10:])
    popular = int(z.sum(0).argmax())
    without = book.encode_without(X, [popular])
    assert (without[:, popular] == 0).all()
    assert (without.sum(1) == 4).all()


def test_training_finds_planted_words():
    """Vectors that are one of 12 directions and noise: every code becomes a word, and a word's precision is 1."""
    generator = torch.Generator().manual_seed(1)
    words = torch.nn.functional.normalize(torch.randn(12, 16, generator=generator), dim=1)
    label = torch.randint(0, 12, (6000,), generator=generator)
    x = words[label] + 0.05 * torch.randn(6000, 16, generator=generator)
    book = train(x, "group_codebook", n_latents=12, k=1, steps=150, batch_size=512, lr=1e-2, progress=False)
    z = book.encode(x)
    precision, recall = code_precision(z, torch.nn.functional.one_hot(label, 12).bool())
    assert (precision.max(1).values > 0.98).all()
    assert (recall.max(0).values > 0.98).all()
    assert perplexity(z) > 11.5
    assert (x - book(x)).square().sum(1).mean() < 1.2 * 16 * 0.05**2


def test_usage_by_hand():
    z = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert usage(z).tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_clusters_of_a_stream_and_of_too_few_vectors():
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(6, 3, generator=generator)
    batches = [centres[torch.randint(0, 6, (200,), generator=generator)] for _ in range(10)]
    found = kmeans(iter(batches), 6, seed=0)
    assert torch.cdist(centres, found).min(1).values.max() < 0.05
    assert torch.equal(kmeans([torch.ones(2, 3)], 5, seed=0), torch.ones(5, 3))
    with pytest.raises(ValueError, match="no vectors to cluster"):
        kmeans([], 3, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 3}, "groups=3 must divide"), ({"k": 21}, "k=21 must lie"), ({"reduce": "max"}, "reduce='max'")],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        GroupCodebook(8, 20, **{"k": 1, **options})
