"""Everything that SpLiCE decomposes, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.backbones import models
from vlsae import extract, load_images

N = 12  # pictures


def sigma(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


# ---- every kind of input ---------------------------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same(sp, tiny, found, pictures, folder, x, tmp_path):
    """Batches of other sizes round differently by 1e-7 of an embedding; weights follow within the duality gap."""
    files = load_images(folder)
    store = extract(tiny, files, "vision.pooled", tmp_path / "store", dtype="float32", batch_size=5, progress=False)
    order = sorted(range(N), key=lambda i: (i % 2, i))  # of the files in their folders
    kinds = {
        "scenes": (pictures, range(N)), "list of scenes": (list(pictures), range(N)),
        "pictures": ([s.image for s in pictures], range(N)), "files": (files, order), "store": (store, order),
        "paths": ([folder / "ab"[i % 2] / f"{i:02}.png" for i in range(N)], range(N)), "folder": (folder, order),
        "numpy arrays of pixels": ([s.pixels for s in pictures], range(N)),
        "torch": (torch.tensor(x), range(N)), "double": (x.astype(np.float64), range(N)),
        "any norm": (x * np.logspace(-30, 30, N)[:, None], range(N)),
    }  # fmt: skip
    for name, (inputs, places) in kinds.items():
        other = sp.decompose(inputs)
        np.testing.assert_allclose(other.embeddings, x[list(places)], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(other.codes.dense(), found.codes.dense()[list(places)], atol=2e-3, err_msg=name)
        assert other.modality == "image" and len(other) == N
    assert sp.decompose(pictures).names == tuple(f"#{i}" for i in range(N)) == found.names
    for inputs in (files, store):
        other = sp.decompose(inputs)
        assert other.labels.tolist() == [0] * 6 + [1] * 6
        assert [n.endswith(f"{'ab'[i % 2]}/{i:02}.png") for n, i in zip(other.names, order)] == [True] * N
    assert (found.labels == -1).all()


def test_one_picture_text_or_path(sp, found, pictures, folder):
    for inputs in (pictures[0], pictures[0].image, folder / "a" / "00.png"):
        one = sp.decompose(inputs)
        assert len(one) == 1
        np.testing.assert_allclose(one.codes.dense(), found.codes.dense()[:1], atol=2e-3)
    assert sp.decompose("a red dog").names == ("a red dog",)


def test_embeddings_of_texts_say_so(sp, tiny):
    texts = ["a red dog", "a blue car"]
    by_text, by_number = sp.decompose(texts), sp.decompose(tiny.encode_text(texts), modality="text")
    np.testing.assert_allclose(by_text.codes.dense(), by_number.codes.dense(), atol=2e-3)
    assert by_number.modality == "text"
    with pytest.raises(ValueError, match="modality='txt'; give 'image' or 'text'"):
        sp.decompose(by_text.embeddings, modality="txt")


def test_a_string_that_names_a_file_is_a_text_with_a_warning(sp, folder, caplog):
    path = str(folder / "a" / "00.png")
    assert sp.decompose([path]).modality == "text"
    assert caplog.messages == [f"{path} is decomposed as a text; for the picture in that file give load_images(...)."]


def test_corrupt_pictures_are_left_out_with_a_warning(sp, found, folder, tmp_path, caplog):
    good = folder / "a" / "00.png"
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "1.png").write_bytes(good.read_bytes())
    (tmp_path / "2.png").write_bytes(good.read_bytes()[:200])
    one = sp.decompose(load_images(tmp_path))
    assert one.names == (str(tmp_path / "1.png"),) and one.labels.tolist() == [-1]
    np.testing.assert_allclose(one.codes.dense(), found.codes.dense()[:1], atol=2e-3)
    assert "2 of 3 images are left out; the first:" in caplog.text and "0.png" in caplog.text
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"None of 2 images can be read; the first: .*0\.png"):
        sp.decompose(load_images(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((2, 192), np.nan), "Embedding 0 holds NaN or infinite values"),
        (np.where(np.arange(3)[:, None] == 1, np.inf, np.ones((3, 192))), "Embedding 1 holds NaN or infinite values"),
        (np.arange(2)[::-1, None] * np.ones((2, 192)), "Embedding 1 is zero and has no direction"),
        (np.ones((2, 5)), r"Embeddings have shape \(2, 5\); those of tiny have \[N, 192\]"),
        (np.ones(192), r"Embeddings are float64 of shape \(192,\); give floating \[N, e\]"),
        (np.ones((2, 192), int), r"Embeddings are int64 of shape \(2, 192\); give floating"),
        (np.ones((0, 192)), r"shape \(0, 192\); give floating \[N, e\] with N at least 1"),
        (torch.ones(2, 3, 64, 64), r"shape \(2, 3, 64, 64\); give floating \[N, e\]"),
        ([np.ones(192)], r"A list of vectors was given; stack embeddings to one array \[N, e\]"),
        ([torch.ones(192)], r"A list of vectors was given; stack embeddings to one array \[N, e\]"),
        ([], "nothing to decompose; give at least one image, text or embedding"),
        ([3.5], "Image 0 is a float; give paths"),
    ],
)
def test_what_cannot_be_decomposed(sp, given, message):
    with pytest.raises(ValueError, match=message):
        sp.decompose(given)


def test_stores_of_other_sites_or_models_are_refused(sp, tiny, folder, tmp_path):
    images = load_images([folder / "a" / "00.png"])
    tokens = extract(tiny, images, out=tmp_path / "tokens", progress=False)
    with pytest.raises(ValueError, match=r"holds vision\.4\.resid_post; .* extract the site vision\.pooled"):
        sp.decompose(tokens)
    other = extract(models.vit(32), images, "vision.pooled", tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="The store was extracted with small ViT/32, not with tiny"):
        sp.decompose(other)


def test_grey_palette_and_tiny_pictures_are_decomposed(sp):
    pictures = [Image.new("L", (9, 5), 200), Image.new("P", (64, 64)), Image.new("RGBA", (1, 1), (255, 0, 0, 128))]
    assert len(sp.decompose(pictures)) == 3
