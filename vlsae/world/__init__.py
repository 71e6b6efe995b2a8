"""The embedded default: scenes with known truth, the tiny CLIP trained on them, planted dictionaries and trees."""

from vlsae.world.captions import concepts
from vlsae.world.hierarchy import ConceptHierarchy, concept_hierarchy
from vlsae.world.layout import Layout, SceneObject, SceneOptions, is_held_out
from vlsae.world.scenes import Scene, Scenes, counterfactual, scenes

__all__ = [
    "ConceptHierarchy",
    "ConceptTree",
    "Planted",
    "PlantedPairs",
    "Layout",
    "Scene",
    "SceneObject",
    "SceneOptions",
    "Scenes",
    "concept_hierarchy",
    "concept_tree",
    "concepts",
    "counterfactual",
    "is_held_out",
    "planted",
    "planted_pairs",
    "scenes",
]


def __getattr__(name: str):
    if name in ("ConceptTree", "concept_tree"):
        from vlsae.world import tree

        return getattr(tree, name)
    if name in ("Planted", "planted"):  # these need torch, scenes do not
        from vlsae.world import planting

        return getattr(planting, name)
    if name in ("PlantedPairs", "planted_pairs"):
        from vlsae.world import pairs

        return getattr(pairs, name)
    raise AttributeError(f"module 'vlsae.world' has no attribute {name!r}")
