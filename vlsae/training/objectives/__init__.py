"""What is minimised: one file a term, found by name; a family lists the names of its terms."""

from vlsae.training.objectives.base import OBJECTIVES, Objective, Step, explained_variance

__all__ = ["OBJECTIVES", "Objective", "Step", "explained_variance"]
