"""Depth of common ancestors on a tree of three levels, and of the world's own objects."""

import numpy as np
import pytest

from vlsae.metrics.lca_depth import lca_depth
from vlsae.world import scenes

# a root, three groups, and three kinds of each; images of every kind
PARENT = np.array([-1, 0, 0, 0, *np.repeat([1, 2, 3], 3)])


def test_general_groups_are_shallower_than_specific_ones():
    """Card 46: by hand, latents of the first level are those of groups, of the second those of kinds."""
    labels = np.repeat(np.arange(4, 13), 5)  # images 0 to 4 show node 4, ...
    whole = np.array([[0, 20, 40, -1]])
    groups = np.array([[0, 5, 10, -1], [15, 20, 25, 29]])
    kinds = np.array([[0, 1, 2, 3], [44, 43, -1, -1]])
    assert lca_depth(whole, labels, PARENT).tolist() == [0]
    assert lca_depth(groups, labels, PARENT).tolist() == [1, 1]
    assert lca_depth(kinds, labels, PARENT).tolist() == [2, 2]
    assert np.isnan(lca_depth(np.array([[-1, -1]]), labels, PARENT)).all()


def test_it_is_the_deepest_node_above_all():
    """Against paths to the root on random trees."""
    rng = np.random.default_rng(0)
    parent = np.array([-1, *(rng.integers(0, i) for i in range(1, 40))])
    labels, top = rng.integers(0, 40, 100), rng.integers(-1, 100, (50, 3))

    def path(node):
        return [] if node < 0 else [*path(parent[node]), node]

    for row, depth in zip(top, lca_depth(top, labels, parent), strict=True):
        paths = [path(labels[i]) for i in row if i >= 0]
        shared = [len(set(nodes)) == 1 for nodes in zip(*paths)]
        assert depth == [*shared, False].index(False) - 1


def test_the_worlds_objects():
    """Scenes of one object: those of a group have its depth, those of an object one more."""
    shown = [scene.objects[0] for scene in scenes(300, seed=3, n_objects=(1, 0, 0, 0))]
    groups, names = sorted({o.group for o in shown}), sorted({o.name for o in shown})
    group_of = {o.name: o.group for o in shown}
    parent = np.array([-1, *[0] * len(groups), *(1 + groups.index(group_of[name]) for name in names)])
    labels = np.array([1 + len(groups) + names.index(o.name) for o in shown])
    animals = [i for i, o in enumerate(shown) if o.group == "animal"][:16]
    name = shown[animals[0]].name
    same = [i for i, o in enumerate(shown) if o.name == name]
    depths = [lca_depth(np.array([top]), labels, parent)[0] for top in (range(16), animals, same)]
    assert depths == [0, 1, 2]


def test_messages():
    with pytest.raises(ValueError, match=r"parent=\[-1, -1\] must hold -1 once"):
        lca_depth(np.array([[0]]), np.array([0]), np.array([-1, -1]))
    with pytest.raises(ValueError, match="go in a circle"):
        lca_depth(np.array([[0]]), np.array([0]), np.array([-1, 2, 1]))
    with pytest.raises(ValueError, match="Top images up to 3 for 2 labels"):
        lca_depth(np.array([[3]]), np.array([0, 0]), np.array([-1]))
