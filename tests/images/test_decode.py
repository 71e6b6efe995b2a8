"""Photographs as people have them come out as a viewer would show them."""

import numpy as np
import pytest
from PIL import Image

from vlsae.images import UnreadableImage, content_id, open_image, to_rgb

RED = (200, 30, 40)


def _save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_exif_rotation(tmp_path):
    """Orientation 6: the camera was turned; the left top of the file is the right top of the picture."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    upright = open_image(_save(tmp_path, image, "a.png", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((15, 4)) == RED
    assert upright.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (*RED, 255)), RED),
        (Image.new("RGBA", (4, 3), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 3), (100, 255)), (100, 100, 100)),
        (Image.new("RGB", (4, 3), RED).quantize(4), RED),
        (Image.fromarray(np.full((3, 4), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((3, 4), 32768, np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((3, 4), 0.5, np.float32)), (128, 128, 128)),
    ],
    ids=["grey", "bilevel", "rgba", "transparent", "grey-alpha", "palette", "16-bit", "16-bit half", "float"],
)
def test_modes(image, expected):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.size == (4, 3)
    assert rgb.getpixel((1, 1)) == expected


def test_cmyk_jpeg(tmp_path):
    path = _save(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "c.jpg", quality=100)
    r, g, b = open_image(path).getpixel((8, 8))
    assert r > 200
    assert max(g, b) < 60


def test_palette_transparency_is_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    assert open_image(_save(tmp_path, image, "p.png", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
    path = _save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_unicode_names_tiny_and_huge_files(tmp_path, monkeypatch):
    assert open_image(_save(tmp_path, Image.new("RGB", (1, 1), RED), "ñandú 猫.png")).size == (1, 1)
    large = _save(tmp_path, Image.new("L", (90, 80)), "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL alone refuses twice this and more
    assert open_image(large).size == (90, 80)
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr("vlsae.images.decode.MAX_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="90 x 80 pixels is more than 1000"):
        open_image(large)


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:900]
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"broken\.jpg: not a readable image"):
        open_image(path)
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(tmp_path / "missing.jpg")


def test_content_id_is_of_the_pixels(tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 7, 3), np.uint8))
    stored = open_image(_save(tmp_path, image, "x.png"))
    assert content_id(stored) == content_id(image) == content_id(open_image(_save(tmp_path, image, "y.bmp")))
    changed = image.copy()
    changed.putpixel((0, 0), tuple(255 - v for v in image.getpixel((0, 0))))
    assert content_id(changed) != content_id(image)
