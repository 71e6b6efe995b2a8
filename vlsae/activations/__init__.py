"""Activations on disk: written once, resumable, verified, read in any order."""

from vlsae.activations.extraction import extract
from vlsae.activations.format import TOKEN_POLICIES, StoreConfig, StoreError
from vlsae.activations.grids import OnGrid, common_grid, resample_patches
from vlsae.activations.modalities import TwoModalities
from vlsae.activations.paired import PairedActivations
from vlsae.activations.ranks import job_place, missing_ranks
from vlsae.activations.reader import ActivationStore, ReaderState

__all__ = [
    "TOKEN_POLICIES",
    "ActivationStore",
    "OnGrid",
    "PairedActivations",
    "ReaderState",
    "StoreConfig",
    "StoreError",
    "TwoModalities",
    "common_grid",
    "extract",
    "job_place",
    "missing_ranks",
    "resample_patches",
]
