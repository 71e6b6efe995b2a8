"""Latents of a sparse autoencoder as sparse non-negative mixtures of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlsae.splice.embedding import EmbeddedVocabulary, unit
from vlsae.splice.solve import solve
from vlsae.splice.weights import ConceptWeights

if TYPE_CHECKING:
    from torch import Tensor

    from vlsae.backbones.base import Backbone
    from vlsae.dictionaries.base import Dictionary


@dataclass(frozen=True)
class AtomExplanations:
    """What the atoms of a dictionary mean in words.

    Attributes:
        codes: concept weights of every atom.
        explained: share of an atom's squared length that its words give back, `1 - ||z - wC||^2`, `[n_latents]`; 0: none
            of it lies in the cone of the words. With a penalty even one exact word gives `1 - (l1 / 2)^2`.
        texts: the concepts.
    """

    codes: ConceptWeights
    explained: np.ndarray
    texts: tuple[str, ...]

    def top(self, latent: int, n: int = 5) -> list[tuple[str, float]]:
        """The words of a latent with their weights, strongest first."""
        row = self.codes.weights[latent]
        order = np.lexsort((row.indices, -row.data))[:n]
        return [(self.texts[row.indices[j]], float(row.data[j])) for j in order]

    def sentence(self, latent: int, n: int = 4) -> str:
        """The mixture in one line, with what it leaves open.

        Example: `0.62 dog + 0.21 animal (48 % explained, 52 % not)`.
        """
        mixture = " + ".join(f"{w:.2f} {text}" for text, w in self.top(latent, n)) or "no word"
        share = 100 * float(self.explained[latent])
        return f"{mixture} ({share:.0f} % explained, {100 - share:.0f} % not)"


def explain_atoms(
    dictionary: Dictionary, model: Backbone, space: EmbeddedVocabulary, *, mean: Tensor | None = None, l1: float = 0.25,
    n_concepts: int | None = None, method: str = "active_set", threads: int | None = None,
) -> AtomExplanations:  # fmt: skip
    """Decompose the effect of every atom on the model's read-out into words: SpLiCE on decoder rows.

    The direction of atom `a` in the shared space is `readout(mean + ||mean|| a) - readout(mean)`, since the final
    LayerNorm has a meaning only around a real token; where the dictionary lives in the shared space itself (site
    "vision.pooled"), it is the atom. Directions are differences, so nothing is left to centre; only length is lost.

    Args:
        dictionary: trained on this model's vision tokens or embeddings.
        model: whose read-out is used.
        space: from `embed_vocabulary`, or `SpLiCE(...).space`.
        mean: mean activation `[d]` at the dictionary's site; needed unless it lives in the shared space.
        l1: penalty; n_concepts: where given, a number of words in its place; method, threads: of `solve`.

    Returns:
        `AtomExplanations`.

    Raises:
        ValueError: for a model other than the vocabulary's, or a missing mean.
    """
    if model.weight_hash != space.weight_hash:
        raise ValueError(f"The vocabulary was embedded with {space.spec}, not with {model.spec}; embed it again.")
    if str(dictionary.metadata.get("site", "")).endswith("pooled"):
        directions = dictionary.atoms
    elif mean is None:
        raise ValueError(
            "explain_atoms needs `mean`, the mean activation at the dictionary's site (statistics keep it)."
        )
    else:
        directions = model.readout_directions(dictionary.atoms, mean)
    z = unit(directions.float().cpu().numpy())
    found = solve(z, space.prepared, None if n_concepts else l1, n_concepts=n_concepts, method=method, threads=threads)
    residual = z - np.asarray(found.weights @ space.atoms)
    explained = np.where(np.any(z != 0, axis=1), 1 - (residual**2).sum(1), 0.0)
    return AtomExplanations(found, explained, space.vocabulary.texts)
