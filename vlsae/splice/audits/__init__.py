"""Audits of a set of images by its concepts: what is in it, what sets classes apart, what changed, what to distrust."""

from vlsae.splice.audits.bottleneck import ConceptClassifier, Contribution, Explanation
from vlsae.splice.audits.drift import DriftReport, DriftRow, detectable_difference, drift
from vlsae.splice.audits.groups import GroupAccuracy, GroupCell, group_accuracy
from vlsae.splice.audits.inference import benjamini_hochberg
from vlsae.splice.audits.lift import ClassLift, LiftRow, class_lift
from vlsae.splice.audits.path import ConceptPath, PathPoint, fit_path
from vlsae.splice.audits.query import QueryError
from vlsae.splice.audits.reference import Profile, profile
from vlsae.splice.audits.retrieval import ConceptIndex, Hit, Hits, Match
from vlsae.splice.audits.spurious import SpuriousRanking, SpuriousRow, rank_spurious
from vlsae.splice.audits.summary import ConceptRow, ConceptSummary, summarise

__all__ = [
    "ClassLift", "ConceptClassifier", "ConceptIndex", "ConceptPath", "ConceptRow", "ConceptSummary", "Contribution",
    "DriftReport", "DriftRow", "Explanation", "GroupAccuracy", "GroupCell", "Hit", "Hits", "LiftRow", "Match",
    "PathPoint", "Profile", "QueryError", "SpuriousRanking", "SpuriousRow", "benjamini_hochberg", "class_lift",
    "detectable_difference", "drift", "fit_path", "group_accuracy", "profile", "rank_spurious", "summarise",
]  # fmt: skip
