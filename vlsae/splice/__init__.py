"""SpLiCE: any CLIP embedding as a sparse non-negative combination of words, and what follows from it."""

from vlsae.splice.prepared import prepare
from vlsae.splice.solve import duality_gap, objective, solve
from vlsae.splice.vocabulary import Concept, Vocabulary
from vlsae.splice.weights import ConceptWeights

__all__ = ["Concept", "ConceptWeights", "Vocabulary", "duality_gap", "objective", "prepare", "solve"]
