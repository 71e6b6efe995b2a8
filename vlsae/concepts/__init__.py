"""What a latent means: one-pass statistics, reference images, names; and what follows where a concept is changed."""

from vlsae.concepts.classifier import ConceptGap, StrengthCurve, concept_effects, concept_gap, strength_curve
from vlsae.concepts.coactivation import CoActivations, co_activations
from vlsae.concepts.cross_modal import CrossModalWeights, SampleTokens, cross_modal_weights, strongest_codes
from vlsae.concepts.cross_modal_scores import keep_best, keep_patches, score_patches, score_samples
from vlsae.concepts.hierarchy import Forest, concept_forest, forest_of
from vlsae.concepts.naming import LatentName, WordMatch, match_words, name_latents
from vlsae.concepts.search import ConceptGallery, Similar
from vlsae.concepts.statistics import LatentStatistics, latent_statistics
from vlsae.concepts.strengths import concept_directions, with_strengths

__all__ = [
    "CoActivations", "ConceptGallery", "ConceptGap", "CrossModalWeights", "Forest", "LatentName", "LatentStatistics",
    "SampleTokens", "Similar", "StrengthCurve", "WordMatch", "co_activations", "concept_directions", "concept_effects",
    "concept_forest", "concept_gap", "cross_modal_weights", "forest_of", "keep_best", "keep_patches",
    "latent_statistics", "match_words", "name_latents", "score_patches", "score_samples", "strength_curve",
    "strongest_codes", "with_strengths",
]  # fmt: skip
