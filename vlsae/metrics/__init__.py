"""Scores, one file each, with their definition, reference and population."""

from vlsae.metrics.localisation import Localisation, auroc, localise
from vlsae.metrics.monosemanticity import Monosemanticity, MonosemanticitySums, monosemanticity
from vlsae.metrics.progressive import progressive_reconstruction
from vlsae.metrics.reconstruction import reconstruction
from vlsae.metrics.result import Metric
from vlsae.metrics.tree_recovery import tree_recovery
from vlsae.metrics.zero_shot import spliced_zero_shot

__all__ = ["Localisation", "Metric", "Monosemanticity", "MonosemanticitySums", "auroc", "localise", "monosemanticity",
           "progressive_reconstruction", "reconstruction", "spliced_zero_shot",
           "tree_recovery"]  # fmt: skip
