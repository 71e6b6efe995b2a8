"""What a latent means: one-pass statistics, reference images, names."""

from vlsae.concepts.naming import LatentName, name_latents
from vlsae.concepts.statistics import LatentStatistics, latent_statistics

__all__ = ["LatentName", "LatentStatistics", "latent_statistics", "name_latents"]
