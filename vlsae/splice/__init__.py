"""SpLiCE: any CLIP embedding as a sparse non-negative combination of words, and what follows from it."""

from vlsae.splice import audits
from vlsae.splice.build import build_vocabulary
from vlsae.splice.decomposition import Decomposition
from vlsae.splice.editing import Edited
from vlsae.splice.embedding import EmbeddedVocabulary, embed_vocabulary
from vlsae.splice.explain import AtomExplanations, explain_atoms
from vlsae.splice.means import ModalityMean
from vlsae.splice.model import SpLiCE
from vlsae.splice.prepared import PreparedDictionary, prepare
from vlsae.splice.solve import duality_gap, objective, solve
from vlsae.splice.vocabulary import Concept, Vocabulary
from vlsae.splice.weights import ConceptWeights

__all__ = [
    "AtomExplanations", "Concept", "ConceptWeights", "Decomposition", "Edited", "EmbeddedVocabulary", "ModalityMean",
    "PreparedDictionary", "SpLiCE", "Vocabulary", "audits", "build_vocabulary", "duality_gap", "embed_vocabulary",
    "explain_atoms", "objective", "prepare", "solve",
]  # fmt: skip
