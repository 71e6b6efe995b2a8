"""Activations on disk: written once, resumable, verified, read in any order."""

from vlsae.activations.format import TOKEN_POLICIES, StoreConfig, StoreError
from vlsae.activations.paired import PairedActivations
from vlsae.activations.reader import ActivationStore, ReaderState
from vlsae.activations.writer import extract

__all__ = [
    "TOKEN_POLICIES",
    "ActivationStore",
    "PairedActivations",
    "ReaderState",
    "StoreConfig",
    "StoreError",
    "extract",
]
