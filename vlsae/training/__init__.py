"""Training a dictionary: one loop, objectives as small objects, dead-latent policies, exact resume."""

from vlsae.training.config import TrainConfig
from vlsae.training.presets import PRESETS

__all__ = ["PRESETS", "TrainConfig", "TrainingDiverged", "train"]


def __getattr__(name: str):
    if name in ("TrainingDiverged", "train"):  # the loop needs torch, the config must not
        from vlsae.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'vlsae.training' has no attribute {name!r}")
