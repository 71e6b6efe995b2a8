"""Any picture file to upright 8-bit RGB, and the id of its content."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 29  # 512 megapixels: larger files are more likely an attack than a photograph


class UnreadableImage(ValueError):
    """A file that cannot be decoded; the message names it and says why."""


def _sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values)
        top = values.max(initial=0.0)
        scale = 255.0 if top <= 1.0 else 255.0 / top
    else:
        scale = 255.0 / 65535.0 if values.max(initial=0) > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8), "L")


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any PIL image into upright RGB as a viewer would show it.

    EXIF rotation is applied, transparency is laid on white, 16-bit and float grey is scaled to 8 bits, of an animation
    the first frame is taken.

    Args:
        image: any mode PIL knows.

    Returns:
        An RGB image; the same pixels when it was upright RGB already.

    Example:
        >>> from PIL import Image
        >>> to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _sixteen_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(path: str | Path) -> Image.Image:
    """Read a picture file as upright RGB.

    Raises:
        UnreadableImage: when the file is missing, empty, truncated, of no known format, or above 512 megapixels.
    """
    path = Path(path)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableImage(
                        f"{path}: {width} x {height} pixels is more than {MAX_PIXELS}; scale the image down first."
                    )
                return to_rgb(image)
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path}: no such file; check the path.") from error
    except Exception as error:
        raise UnreadableImage(
            f"{path}: not a readable image ({type(error).__name__}: {error}); replace or remove the file."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def content_id(image: Image.Image) -> str:
    """The identity of a picture: BLAKE2 of its size and RGB pixels, 32 hexadecimal digits, whatever its file or name.

    Example:
        >>> from PIL import Image
        >>> content_id(Image.new("RGB", (4, 2))) == content_id(Image.new("RGB", (2, 4)))
        False
    """
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()
