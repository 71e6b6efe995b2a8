"""Images as people have them: sources, robust decoding, content ids, and patch <-> pixel geometry."""

from vlsae.images.decode import UnreadableImage, content_id, open_image, to_rgb
from vlsae.images.geometry import Geometry
from vlsae.images.sources import ImageSource, Sample, load_images

__all__ = [
    "Geometry",
    "ImageSource",
    "Sample",
    "UnreadableImage",
    "content_id",
    "load_images",
    "open_image",
    "to_rgb",
]
