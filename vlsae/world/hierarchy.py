"""The true tree of what scenes show: groups, their objects, and objects of one colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlsae.world.icons import GROUPS, icons
from vlsae.world.layout import OBJECT_COLORS, SceneObject
from vlsae.world.scenes import Scene


@dataclass(frozen=True)
class ConceptHierarchy:
    """Nodes of three kinds, parents before their children.

    Attributes:
        names: `("animal", ..., "cat", ..., "red cat", ...)`.
        kinds: parallel, "group", "object" or "colored object".
        parent: `[nodes]`, the number of each node's parent; -1 for groups.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    parent: np.ndarray

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def nodes_of(self, obj: SceneObject) -> list[int]:
        """Numbers of the group, the object and the coloured object that `obj` is.

        Raises:
            ValueError: for an object that this hierarchy leaves out.
        """
        wanted = (obj.group, obj.name, f"{obj.color} {obj.name}")
        if obj.name not in self._number:
            raise ValueError(
                f"{obj.name!r} is no node; draw scenes with names=... of the same objects, or take the whole hierarchy."
            )
        return [self._number[name] for name in wanted]

    def presence(self, drawn: Iterable[Scene]) -> np.ndarray:
        """Which nodes each scene shows, bool `[scenes, nodes]`."""
        drawn = list(drawn)
        present = np.zeros((len(drawn), len(self.names)), bool)
        for i, scene in enumerate(drawn):
            present[i, [node for obj in scene.objects for node in self.nodes_of(obj)]] = True
        return present


def concept_hierarchy(objects: Sequence[str] | None = None) -> ConceptHierarchy:
    """The hierarchy group → object → coloured object.

    Args:
        objects: the object words to keep, with their groups; all where None.

    Returns:
        `ConceptHierarchy`.

    Raises:
        ValueError: for a word that is no object.

    Example:
        >>> from vlsae.world import concept_hierarchy
        >>> tree = concept_hierarchy(["cat", "dog"])
        >>> tree.names[:4], tree.parent[:4].tolist()
        (('animal', 'cat', 'dog', 'red cat'), [-1, 0, 0, 1])
    """
    kept = list(icons()) if objects is None else sorted(set(objects))
    unknown = [name for name in kept if name not in icons()]
    if unknown:
        raise ValueError(f"Unknown object {unknown[0]!r}; vlsae.world.concepts()['object'] lists them.")
    groups = [group for group in GROUPS if any(icons()[name].group == group for name in kept)]
    names = (*groups, *kept, *(f"{color} {name}" for name in kept for color in OBJECT_COLORS))
    n_colored = len(kept) * len(OBJECT_COLORS)
    kinds = ("group",) * len(groups) + ("object",) * len(kept) + ("colored object",) * n_colored
    of_objects = [groups.index(icons()[name].group) for name in kept]
    of_colored = len(groups) + np.repeat(np.arange(len(kept)), len(OBJECT_COLORS))
    return ConceptHierarchy(names, kinds, np.array([-1] * len(groups) + of_objects + of_colored.tolist()))
