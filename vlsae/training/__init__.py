"""Training a dictionary: one loop, objectives as small objects, dead-latent policies, exact resume."""

from vlsae.training.config import PRESETS, TrainConfig
from vlsae.training.loop import TrainingDiverged, train

__all__ = ["PRESETS", "TrainConfig", "TrainingDiverged", "train"]
