"""Base against adapted model under one dictionary on the same images: what changed, and how sure that is."""

from vlsae.adaptation.comparison.aggregation import Aggregates, aggregate, aggregate_codes, aggregate_sweep
from vlsae.adaptation.comparison.changes import Changes, changes
from vlsae.adaptation.comparison.gain import Gain, decompose_gain
from vlsae.adaptation.comparison.gains import harmonic_mean, relative_gain
from vlsae.adaptation.comparison.groups import Groups, group_classes, group_latents
from vlsae.adaptation.comparison.mask_table import MaskingCurves
from vlsae.adaptation.comparison.masking import masking_curves
from vlsae.adaptation.comparison.masking_ranks import LatentRanking, class_ranking, dataset_ranking, random_ranking
from vlsae.adaptation.comparison.overlap import Overlap, overlaps, rank_biased_overlap, top_k_overlap
from vlsae.adaptation.comparison.remapping import RankTable, Remapping, label_entropies, rank_table, remapping
from vlsae.adaptation.comparison.text_side import class_concepts, logit_parts
from vlsae.adaptation.comparison.validity import Validity, fine_tune, validity

__all__ = [
    "Aggregates", "Changes", "Gain", "Groups", "LatentRanking", "MaskingCurves", "Overlap", "RankTable", "Remapping",
    "Validity", "aggregate", "class_concepts", "decompose_gain", "fine_tune", "logit_parts", "masking_curves", "validity",
    "aggregate_codes", "aggregate_sweep", "changes", "class_ranking", "dataset_ranking", "group_classes",
    "group_latents", "harmonic_mean", "label_entropies", "overlaps", "random_ranking", "rank_biased_overlap",
    "rank_table", "relative_gain", "remapping", "top_k_overlap",
]  # fmt: skip
