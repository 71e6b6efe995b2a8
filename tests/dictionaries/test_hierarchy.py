"""A planted tree of concepts: absorption of parents, and the geometry that each family finds."""

import pytest
import torch

from vlsae.metrics.coherence import level_errors
from vlsae.metrics.matching import best_partners
from vlsae.training import train
from vlsae.world import concept_tree

RECIPE = {
    "n_latents": 20, "steps": 1500, "batch_size": 200, "lr": 3e-2, "beta1": 0.5, "beta2": 0.9375, "clip_gradient": 1.0,
    "b_dec_init": "none", "dead_policy": "none", "progress": False,
}  # fmt: skip
PURSUIT = {"k": 4, "tol": 0.05}


def test_the_tree_is_as_described():
    tree = concept_tree(d=24, correlation=0.6, seed=3)
    cosine = tree.atoms @ tree.atoms.T
    same = tree.level[:, None] == tree.level[None]
    expected = torch.where(same, 0.6, 0.0).fill_diagonal_(1.0)
    assert torch.allclose(cosine, expected, atol=1e-5)
    x, z = tree.sample(50_000)
    assert torch.allclose(x, z @ tree.atoms)
    active = z > 0
    assert (active[:, :11].sum(1) == 1).all()
    for child in range(11, 20):
        assert active[active[:, child], tree.parent[child]].all()
    # the standard deviation of a share of 50,000 is at most .0018
    assert torch.allclose(active.float().mean(0)[:3], torch.full((3,), 0.2), atol=0.008)
    assert torch.allclose(active.float().mean(0)[11:], torch.full((9,), 0.04), atol=0.005)
    assert active.sum(1).float().mean().item() == pytest.approx(tree.mean_l0, abs=0.01)
    assert z[active].std().item() == pytest.approx(0.25, abs=0.005)
    with pytest.raises(ValueError, match="d=19, correlation=0.0: give d of at least 20"):
        concept_tree(d=19)


def _parent_recall(tree, sae) -> tuple[float, torch.Tensor]:
    """How often the parent's latent fires where a child is there; and the latent of every atom."""
    x, z = tree.sample(4000, part=1)
    codes = sae.encode(x)
    partners = best_partners(z, codes)
    children = (tree.parent >= 0).nonzero()[:, 0]
    recall = [(codes[z[:, c] > 0][:, partners[tree.parent[c]]] > 1e-6).float().mean() for c in children]
    return float(torch.stack(recall).mean()), partners


@pytest.mark.parametrize("seed", [0, 1])
def test_a_flat_dictionary_absorbs_parents_and_a_nested_one_does_not(seed):
    """Card 22: with fixed strengths a sparser code writes parent and child with one latent, and L1 prefers it.

    That atom is `(parent + child) / sqrt 2`, of cosine .7071 with the child, and the parent is silent then: recall 0.
    The first prefixes must tell the parents alone, so that nested parents fire with their children: recall 1. With
    latents sorted by their energy the three large parents are the first three for each of the seeds 0 to 3; unsorted,
    seed 1 merges two of them, and has recall .67: hedging.
    """
    tree = concept_tree(spread=0.0, seed=seed)
    options = {**RECIPE, "target_l0": tree.mean_l0, "l1": 0.05, "seed": seed}
    x, _ = tree.sample(40_000)
    flat = train(x, "relu", **options)
    recall, partners = _parent_recall(tree, flat)
    cosine = torch.nn.functional.cosine_similarity(flat.atoms[partners], tree.atoms)
    assert recall == 0
    assert torch.allclose(cosine[11:], torch.full((9,), 0.5**0.5), atol=0.01)
    nested = train(x, "relu", **options, objectives="nested_dictionary,l1", random_prefixes=10, sort_latents=True)
    recall, partners = _parent_recall(tree, nested)
    assert recall > 0.99
    assert sorted(partners[:3].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_matching_pursuit_keeps_levels_orthogonal_where_a_linear_encoder_mixes_them(correlation):
    """Card 41, test 6, with the paper's stop: the error of cosines across levels is far below the ReLU dictionary's.

    Measured over four seeds: .000 to .012 against .033 to .155 (.159 after twice the steps). Within levels matching
    pursuit is no better, and worse at .6 (.12 to .13 against .02 to .10).
    """
    for seed in range(2):
        tree = concept_tree(correlation=correlation, seed=seed)
        x, z = tree.sample(40_000)
        across = []
        for family, own in (("relu", {"target_l0": tree.mean_l0, "l1": 0.05}), ("matching_pursuit", PURSUIT)):
            sae = train(x, family, **RECIPE, **own, seed=seed)
            partners = best_partners(z[:4000], sae.encode(x[:4000]))
            across.append(level_errors(sae.atoms[partners], tree.atoms, tree.level)[1])
        assert across[1] < 0.2 * across[0]


def test_level_errors_by_hand():
    """Two atoms a level, all orthogonal in truth: a cosine of .6 within one level, of .8 across."""
    level = torch.tensor([0, 0, 1, 1])
    within = torch.tensor([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert level_errors(within, torch.eye(4), level) == pytest.approx((0.36 / 2, 0))
    across = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0.8, 0, 0.6, 0], [0, 0, 0, 1.0]])
    assert level_errors(across, torch.eye(4), level) == pytest.approx((0, 0.64 / 4))
    with pytest.raises(ValueError, match="3 found atoms, 4 true ones"):
        level_errors(torch.eye(4)[:3], torch.eye(4), level)
