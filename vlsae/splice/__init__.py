"""SpLiCE: any CLIP embedding as a sparse non-negative combination of words, and what follows from it."""

from vlsae.splice import audits
from vlsae.splice.build import build_vocabulary
from vlsae.splice.decomposition import Decomposition
from vlsae.splice.editing import EditAudit, Edited, audit_edit
from vlsae.splice.embedding import EmbeddedVocabulary, embed_vocabulary
from vlsae.splice.explain import AtomExplanations, explain_atoms
from vlsae.splice.means import ModalityMean
from vlsae.splice.model import SpLiCE
from vlsae.splice.prepared import PreparedDictionary, prepare
from vlsae.splice.solve import duality_gap, objective, solve
from vlsae.splice.trade_off import TradeOff, trade_off
from vlsae.splice.vocabulary import Concept, Vocabulary
from vlsae.splice.weights import ConceptWeights

__all__ = [
    "AtomExplanations", "Concept", "ConceptWeights", "Decomposition", "EditAudit", "Edited", "EmbeddedVocabulary",
    "ModalityMean", "PreparedDictionary", "SpLiCE", "TradeOff", "Vocabulary", "audit_edit", "audits",
    "build_vocabulary", "duality_gap", "embed_vocabulary", "explain_atoms", "objective", "prepare", "solve",
    "trade_off",
]  # fmt: skip
