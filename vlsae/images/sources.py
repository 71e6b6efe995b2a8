"""Where images come from: files, folders, lists, tables, data sets and scenes, all as one sequence of samples."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlsae.images.decode import UnreadableImage, content_id, open_image, to_rgb

EXTENSIONS = frozenset(
    f".{name}"
    for name in "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm ico avif jp2 heic heif jxl".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Sample:
    """One decoded image: upright RGB, its content id, where it came from, and its class number (-1: none)."""

    image: Image.Image
    id: str
    name: str
    label: int = -1

    @property
    def content(self) -> Image.Image:
        """What the model is given."""
        return self.image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


class ImageSource(Sequence):
    """A sequence of samples, decoded when they are asked for.

    Args:
        items: one entry an image: a path, a PIL image, an array, or an object with `.image`.
        labels: class number of every item, -1 for none.
        class_names: name of every class number; different classes may share a name.
        spec: how to open the same source again, where it came from disk.
    """

    def __init__(self, items, labels: Sequence[int] | None = None, class_names: Sequence[str] = (), spec: str = ""):
        self.items = items
        self.labels = list(labels) if labels is not None else None
        self.class_names = list(class_names)
        self.spec = spec
        self._indices = range(len(items))

    def __len__(self) -> int:
        return len(self._indices)

    def known_labels(self) -> list[int]:
        """Class number of every sample, -1 for none; decodes images only where they alone know."""
        if self.labels is not None:
            return [int(self.labels[i]) for i in self._indices]
        return [self[i].label for i in range(len(self))]

    def __getitem__(self, index):
        if isinstance(index, slice):
            part = ImageSource(self.items, self.labels, self.class_names)
            part._indices = self._indices[index]
            return part
        index = self._indices[index]
        item = self._item(index)
        label = self.labels[index] if self.labels is not None else -1
        if isinstance(item, tuple):
            item, label = item[:2]
        elif isinstance(item, dict):
            item, label = item.get("image", item.get("img")), item.get("label", label)
        elif isinstance(item, Sample):
            return item
        image = _decode(item, index)
        return Sample(image, content_id(image), _name(item, index), int(label) if label is not None else -1)

    def _item(self, index: int) -> Any:
        try:
            return self.items[index]
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(f"Image {index} of the data set cannot be read ({error}).") from error


def _decode(item: Any, index: int) -> Image.Image:
    if isinstance(item, (str, Path)):
        return open_image(item)
    if isinstance(item, Image.Image):
        try:
            return to_rgb(item)
        except (OSError, SyntaxError) as error:  # opened lazily, damaged further on
            raise UnreadableImage(f"Image {index} cannot be decoded ({error}).") from error
    if isinstance(item, np.ndarray):
        try:
            return to_rgb(Image.fromarray(item))
        except (TypeError, ValueError) as error:
            raise UnreadableImage(
                f"Image {index} is an array {item.shape} of {item.dtype}; give uint8 [H, W] or [H, W, 3 or 4]."
            ) from error
    if hasattr(item, "image"):
        return to_rgb(item.image)
    raise UnreadableImage(
        f"Image {index} is a {type(item).__name__}; give paths, PIL images, uint8 arrays [H, W, 3] or scenes."
    )


def _name(item: Any, index: int) -> str:
    return str(item) if isinstance(item, (str, Path)) else f"#{index}"


def _folder(folder: Path) -> ImageSource:
    files = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")
    )
    if not files:
        raise ValueError(f"{folder} holds no image files; put pictures ({', '.join(sorted(EXTENSIONS))}) into it.")
    classes = sorted({f.relative_to(folder).parts[0] for f in files if len(f.relative_to(folder).parts) > 1})
    number = {name: i for i, name in enumerate(classes)}
    labels = [number.get(f.relative_to(folder).parts[0], -1) if f.parent != folder else -1 for f in files]
    return ImageSource(files, labels, classes, spec=str(folder))


def _table(table: Path) -> ImageSource:
    """A .csv with columns `path` and maybe `label`, or a .txt with one path a line; paths relative to the table."""
    text = table.read_text(encoding="utf-8-sig")
    if table.suffix.lower() == ".txt":
        rows = [{"path": line.strip()} for line in text.splitlines() if line.strip()]
    else:
        rows = list(csv.DictReader(text.splitlines()))
    if not rows:
        raise ValueError(f"{table} lists no images; give one path a line.")
    if "path" not in rows[0]:
        raise ValueError(f"{table} has the columns {', '.join(rows[0])}; a column called 'path' is needed.")
    names = sorted({row["label"] for row in rows if row.get("label")})
    number = {name: i for i, name in enumerate(names)}
    files = [table.parent / row["path"] for row in rows]
    return ImageSource(files, [number.get(row.get("label") or "", -1) for row in rows], names, spec=str(table))


def _class_names(data: Any) -> list[str]:
    if getattr(data, "classes", None):
        return [str(c) for c in data.classes]
    label = (getattr(data, "features", None) or {}).get("label")
    return list(getattr(label, "names", None) or [])


def load_images(source: Any) -> ImageSource:
    """Open any collection of images as one sequence of samples.

    Args:
        source: a picture file; a folder (searched through, its sub-folders are classes); a `.csv` with columns `path`
            and `label`, or a `.txt` with one path a line; a list of paths, PIL images, uint8 arrays or scenes; a
            `vlsae.world.Scenes`; a map-style torch or Hugging Face data set of `(image, label)` or
            `{"image": ..., "label": ...}`; an `ImageSource`.

    Returns:
        An `ImageSource`. Images are decoded when read; each has a content id, so that the same picture is recognised
        under any name.

    Raises:
        ValueError: for an empty source, a path that does not exist, or something that holds no images.

    Example:
        >>> from PIL import Image
        >>> images = load_images([Image.new("RGB", (8, 6), "red")])
        >>> len(images), images[0].image.size, images[0].label
        (1, (8, 6), -1)
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise ValueError(f"{path} does not exist; give a picture, a folder, a .csv or a .txt list.")
        if path.is_dir():
            return _folder(path)
        if path.suffix.lower() in (".csv", ".txt"):
            return _table(path)
        return ImageSource([path], spec=str(path))
    if isinstance(source, (Image.Image, np.ndarray)):
        source = [source]
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise ValueError(f"A {type(source).__name__} is no image source; give a path, a list or a map-style data set.")
    if len(source) == 0:
        raise ValueError("The image source is empty; give at least one image.")
    return ImageSource(source, class_names=_class_names(source))
