"""Every kind of collection is the same sequence of samples."""

import numpy as np
import pytest
from PIL import Image

from vlsae.images import UnreadableImage, load_images
from vlsae.world import scenes


def _photo(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), color).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    _photo(tmp_path / "cat" / "a.png", "red")
    _photo(tmp_path / "cat" / "deep" / "b.JPG", "green")
    _photo(tmp_path / "dog" / "c.webp", "blue")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_with_classes(folder):
    images = load_images(folder)
    assert [s.label for s in images] == [0, 0, 1]
    assert images.class_names == ["cat", "dog"]
    assert images.spec == str(folder)
    assert len({s.id for s in images}) == 3


def test_flat_folder_has_no_labels(tmp_path):
    _photo(tmp_path / "x.png", "red")
    assert load_images(tmp_path)[0].label == -1


def test_csv_and_txt(folder):
    table = folder / "list.csv"
    table.write_text("path,label\ncat/a.png,feline\ndog/c.webp,canine\n")
    images = load_images(table)
    assert images.class_names == ["canine", "feline"]
    assert [s.label for s in images] == [1, 0]
    (folder / "list.txt").write_text("cat/a.png\n\ndog/c.webp\n")
    assert len(load_images(folder / "list.txt")) == 2
    table.write_text("file\nx.png\n")
    with pytest.raises(ValueError, match="a column called 'path' is needed"):
        load_images(table)


def test_lists_arrays_and_data_sets():
    picture = Image.new("RGB", (4, 4), "red")
    same = {load_images(kind)[0].id for kind in (picture, [picture], np.asarray(picture), [np.asarray(picture)],
                                                 [(picture, 3)], [{"image": picture, "label": 3}])}  # fmt: skip
    assert len(same) == 1
    assert load_images([(picture, 3)])[0].label == 3
    assert load_images([{"image": picture, "label": 3}])[0].label == 3


def test_torch_data_set():
    class Data:
        classes = ("a", "b")

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return Image.new("L", (3, 3), 10 * i), i

    images = load_images(Data())
    assert images.class_names == ["a", "b"]
    assert [s.label for s in images] == [0, 1]


def test_damaged_members_of_data_sets_and_phone_formats(tmp_path):
    class Damaged(list):
        def __getitem__(self, i):
            raise OSError("truncated")

    with pytest.raises(UnreadableImage, match="Image 0 of the data set"):
        _ = load_images(Damaged([0]))[0]
    (tmp_path / "photo.HEIC").write_bytes(b"0000ftypheic")
    with pytest.raises(UnreadableImage, match=r"photo\.HEIC"):
        _ = load_images(tmp_path)[0]


def test_slices_of_any_source():
    data = load_images([Image.new("L", (2, 2), i) for i in range(6)])
    assert [s.image.getpixel((0, 0))[0] for s in data[1:5][::2]] == [1, 3]
    assert data[1:5].labels is None


def test_scenes_are_a_source():
    drawn = scenes(3, seed=1)
    images = load_images(drawn)
    assert np.array_equal(np.asarray(images[2].image), drawn[2].pixels)
    assert len(images[1:]) == 2


def test_unreadable_files_are_told_not_hidden(folder):
    (folder / "cat" / "bad.png").write_bytes(b"oops")
    images = load_images(folder)
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        _ = images[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: p, "holds no image files"),
        (lambda p: [], "The image source is empty"),
        (lambda p: 5, "A int is no image source"),
    ],
    ids=["missing", "empty folder", "empty list", "number"],
)
def test_no_images_is_an_error(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        load_images(make(tmp_path))
