"""Where a latent is: codes to patch grid to pixels, and pictures of it."""

from vlsae.heatmaps.maps import heatmap, latent_grids, stored_grids
from vlsae.heatmaps.render import contour, overlay, reference_grid

__all__ = ["contour", "heatmap", "latent_grids", "overlay", "reference_grid", "stored_grids"]
