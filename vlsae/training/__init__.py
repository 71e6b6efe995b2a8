"""Training a dictionary: one loop, objectives as small objects, dead-latent policies, exact resume."""

import importlib

from vlsae.training.config import TrainConfig
from vlsae.training.presets import PRESETS

__all__ = ["PRESETS", "SplicedModel", "TrainConfig", "TrainingDiverged", "grid", "sweep", "train", "train_universal"]


def __getattr__(name: str):
    homes = {
        "SplicedModel": "end_to_end",
        "TrainingDiverged": "run",
        "train": "loop",
        "grid": "sweeps",
        "sweep": "sweeps",
        "train_universal": "universal",
    }
    if name in homes:  # these need torch, the recipes must not
        return getattr(importlib.import_module(f"vlsae.training.{homes[name]}"), name)
    raise AttributeError(f"module 'vlsae.training' has no attribute {name!r}")
