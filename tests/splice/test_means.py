"""Modality means: the numbers, their error, their files, and whose they are."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones import models
from vlsae import load_images
from vlsae.splice.means import PUBLISHED_FOR, TINY, ModalityMean, known_mean
from vlsae.splice.model import SpLiCE
from vlsae.splice.published import MEANS
from vlsae.splice.tiny_means import SEED, N, take
from vlsae.world import scenes

TEXTS = ["a red dog", "a blue car", "a green tree"]


def _mean(x, **changes) -> ModalityMean:
    return ModalityMean.of_embeddings(x, **{"modality": "image", "data": "test", "spec": "none", **changes})


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_mean_and_standard_error_by_hand():
    """Of (1, 0) and (3/5, 4/5) after normalising: mean (.8, .4), variances .08 and .32, error sqrt(.4 / 2)."""
    for x in ([[2.0, 0.0], [0.3, 0.4]], np.array([[2.0, 0.0], [0.3, 0.4]]), torch.tensor([[2.0, 0.0], [0.3, 0.4]])):
        found = _mean(x)
        np.testing.assert_allclose(found.vector, [0.8, 0.4], atol=1e-7)
        assert found.standard_error == pytest.approx(np.sqrt(0.2), abs=1e-7)
        assert found.n == 2 and found.vector.dtype == np.float32


def test_the_mean_is_not_normalised_again():
    assert np.linalg.norm(_mean(np.eye(4)).vector) == pytest.approx(0.5)  # of unit vectors at right angles: 1/sqrt(4)


def test_the_standard_error_is_the_distance_from_the_true_mean():
    """Over repetitions, mean ||m - mu||^2 is the mean of the squared standard errors.

    Both have the same expectation; with 1,500 repetitions of about 8 effective dimensions their ratio has a standard
    deviation of about sqrt(2 / (8 * 1500)) = .013, so that .06 is more than four of them.
    """
    rng = np.random.default_rng(0)
    center = np.array([1.0, 0.5, 0, 0, 0, 0, 0, 0])

    def draw(*shape):
        x = center + 0.7 * rng.standard_normal((*shape, 8))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    truth = draw(400_000).mean(0)
    found = [_mean(x) for x in draw(1500, 40)]
    distance = np.mean([((m.vector - truth) ** 2).sum() for m in found])
    assert distance / np.mean([m.standard_error**2 for m in found]) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("x", [np.ones((1, 4)), np.zeros((0, 4)), np.ones(4), [[1.0, np.nan], [0.0, 1.0]]])
def test_a_mean_of_less_than_two_finite_embeddings_is_refused(x):
    with pytest.raises(ValueError, match="at least two finite embeddings"):
        _mean(x)


def test_there_are_two_modalities():
    with pytest.raises(ValueError, match="modality='audio'; give 'image' or 'text'"):
        _mean(np.eye(2), modality="audio")


# ---- of a model ------------------------------------------------------------------------------------------------------


def test_the_mean_of_pictures_is_that_of_their_embeddings(tiny):
    pictures = scenes(6, seed=1)
    x = tiny.encode_image(list(pictures)).numpy()
    for inputs in (pictures, [s.image for s in pictures], load_images(list(pictures)), x, torch.tensor(x)):
        found = ModalityMean.of(tiny, inputs, batch_size=4, progress=False)
        np.testing.assert_allclose(found.vector, x.mean(0), atol=1e-6)  # batches of other sizes round otherwise
        assert (found.modality, found.n, found.spec, found.weight_hash) == ("image", 6, tiny.spec, tiny.weight_hash)
        assert found.data == "6 images"
    assert ModalityMean.of(tiny, pictures, data="my scenes", progress=False).data == "my scenes"


def test_the_mean_of_texts(tiny):
    found = ModalityMean.of(tiny, TEXTS, progress=False)
    np.testing.assert_allclose(found.vector, tiny.encode_text(TEXTS).numpy().mean(0), atol=1e-6)
    assert (found.modality, found.n, found.data) == ("text", 3, "3 texts")


def test_a_corrupt_picture_costs_that_picture(tiny, tmp_path, caplog):
    for i, scene in enumerate(scenes(3, seed=2)):
        scene.image.save(tmp_path / f"{i}.png")
    whole = ModalityMean.of(tiny, load_images(tmp_path), progress=False)
    (tmp_path / "0 first.png").write_bytes(b"no picture")
    found = ModalityMean.of(tiny, load_images(tmp_path), progress=False)
    np.testing.assert_allclose(found.vector, whole.vector, atol=1e-6)
    assert found.n == 3 and found.data == str(tmp_path)
    assert "1 of 4 images are left out; the first:" in caplog.text and "0 first.png" in caplog.text


def test_a_single_text_is_no_collection_of_letters(tiny):
    with pytest.raises(ValueError, match="at least two finite embeddings"):
        ModalityMean.of(tiny, "photos", progress=False)
    with pytest.raises(ValueError, match="nothing to decompose|at least one"):
        ModalityMean.of(tiny, [], progress=False)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = _mean(np.random.default_rng(0).standard_normal((5, 7)), data="Straßen", weight_hash="abc")
    back = ModalityMean.load(found.save(tmp_path / "deep" / "mean.json"))
    assert back.vector.tolist() == found.vector.tolist() and back.vector.dtype == np.float32
    assert replace(back, vector=None) == replace(found, vector=None)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["mean.json"]


def test_an_unknown_error_survives_as_strict_json(tmp_path):
    found = replace(_mean(np.eye(2)), standard_error=float("nan"), n=0)
    path = found.save(tmp_path / "mean.json")

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["standard_error"] is None
    assert np.isnan(ModalityMean.load(path).standard_error)


@pytest.mark.parametrize("content", ["", "{}", "5", '"x"', "[1]", '{"vlsae_mean": 2}', '{"vlsae_mean": 1}', "\x00\x01"])
def test_a_foreign_file_is_named_with_the_remedy(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x.json is no mean of vlsae \(.*write one with `vlsae mean`"):
        ModalityMean.load(tmp_path / "x.json")


def test_a_missing_file_is_answered_with_the_published_names():
    with pytest.raises(FileNotFoundError, match="There is no mean nowhere.json; published ones by name: clip_RN50"):
        ModalityMean.load("nowhere.json")


# ---- SpLiCE's files --------------------------------------------------------------------------------------------------


def test_a_file_of_splice_is_one_tensor_and_its_name(tmp_path):
    vector = torch.arange(8.0) / 8
    for tensor in (vector, vector[None], torch.nn.Parameter(vector), vector.half()):
        torch.save(tensor, tmp_path / "clip_ViT-B-32_image.pt")
        found = ModalityMean.load(tmp_path / "clip_ViT-B-32_image.pt")
        assert found.vector.tolist() == vector.tolist() and found.vector.dtype == np.float32
        assert (found.spec, found.modality, found.n, found.weight_hash) == ("clip_ViT-B-32", "image", 0, "")
        assert np.isnan(found.standard_error)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_with_code_is_refused_and_the_code_never_runs(tmp_path):
    fuse = tmp_path / "executed"
    pickle.loads(pickle.dumps(_Bomb(fuse)))
    assert fuse.exists()  # the bomb works
    fuse.unlink()
    torch.save(_Bomb(fuse), tmp_path / "a_image.pt")
    torch.save({"x": torch.ones(2), "y": _Bomb(fuse)}, tmp_path / "b_image.pt")
    (tmp_path / "c_image.pt").write_bytes(pickle.dumps(_Bomb(fuse)))
    for name in "abc":
        with pytest.raises(ValueError, match=f"{name}_image.pt is no tensor file of SpLiCE"):
            ModalityMean.load(tmp_path / f"{name}_image.pt")
    assert not fuse.exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04"])
def test_a_damaged_tensor_file_is_named(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pt is no tensor file of SpLiCE \(.+\)"):
        ModalityMean.load(tmp_path / "x.pt")


def test_a_tensor_that_is_no_mean_is_refused(tmp_path):
    for tensor in (torch.tensor([1.0, float("nan")]), torch.zeros(0)):
        torch.save(tensor, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=r"x.pt holds \d numbers"):
            ModalityMean.load(tmp_path / "x.pt")
    torch.save({"mean": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no tensor file"):
        ModalityMean.load(tmp_path / "x.pt")


def test_the_real_files_have_the_norms_of_the_paper(published_files, own_cache):
    """SpLiCE's means are of unit embeddings, of norms .684, .702, .622 and .560; by name they are found in the cache."""
    (own_cache / "splice").mkdir(parents=True)
    norms = {"clip_ViT-B-32": 0.684, "clip_ViT-B-16": 0.702, "clip_RN50": 0.622, "open_clip_ViT-B-32": 0.560}
    assert set(norms) == set(MEANS) == set(PUBLISHED_FOR)
    for name, norm in norms.items():
        path = published_files / f"{name}_image.pt"
        found = ModalityMean.load(path)
        assert np.linalg.norm(found.vector) == pytest.approx(norm, abs=5e-4) and found.spec == name
        (own_cache / "splice" / path.name).write_bytes(path.read_bytes())
        assert ModalityMean.load(name).vector.tolist() == found.vector.tolist()
    assert ModalityMean.load("clip_RN50").vector.shape == (1024,)


# ---- whose mean it is ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other():
    return models.vit(32)


def test_a_mean_is_refused_by_another_backbone(tiny, other, tmp_path):
    mean = ModalityMean.of(other, list(scenes(2)), data="two scenes", progress=False)
    assert mean.check(other, "image") is mean
    with pytest.raises(ValueError, match=r"The image mean of two scenes was taken with small ViT/32 and not with tiny"):
        mean.check(tiny, "image")
    for given in (mean, mean.save(tmp_path / "mean.json"), str(tmp_path / "mean.json")):
        with pytest.raises(ValueError, match="not with tiny; .* `vlsae mean"):
            SpLiCE(tiny, "tiny", image_mean=given, progress=False)


def test_equal_names_do_not_help_where_the_weights_differ(tiny, other):
    mean = ModalityMean.of(other, list(scenes(2)), progress=False)
    with pytest.raises(ValueError, match="was taken with"):
        replace(mean, spec=tiny.spec).check(tiny, "image")
    renamed = replace(mean, spec="a folder of the same weights")
    assert renamed.check(other, "image") is renamed
    unknown = replace(mean, weight_hash="")  # then the name is all there is
    assert unknown.check(other, "image") is unknown
    with pytest.raises(ValueError, match="was taken with small ViT/32 and not with tiny"):
        unknown.check(tiny, "image")


def test_a_mean_of_the_wrong_modality_is_refused(tiny):
    texts = ModalityMean.of(tiny, TEXTS, progress=False)
    with pytest.raises(ValueError, match="A mean of text embeddings was given where one of image embeddings belongs"):
        SpLiCE(tiny, "tiny", image_mean=texts, progress=False)
    with pytest.raises(ValueError, match="A mean of image embeddings was given where one of text embeddings belongs"):
        SpLiCE(tiny, "tiny", text_mean=TINY, progress=False)


def test_a_mean_of_the_wrong_width_is_refused(tiny):
    short = replace(ModalityMean.load(TINY), vector=np.ones(5, np.float32))
    with pytest.raises(ValueError, match="The image mean has 5 numbers; embeddings of tiny have 192"):
        SpLiCE(tiny, "tiny", image_mean=short, progress=False)


def test_a_published_mean_belongs_to_the_names_of_its_model(tiny, other, tmp_path):
    torch.save(torch.ones(24), tmp_path / "clip_ViT-B-32_image.pt")
    mean = ModalityMean.load(tmp_path / "clip_ViT-B-32_image.pt")
    for spec, fits in [("open_clip:ViT-B-32/openai", True), ("hf:openai/clip-vit-base-patch32", True),
                       ("open_clip:ViT-B-16/openai", False), ("open_clip:ViT-B-32/laion2b_s34b_b79k", False)]:  # fmt: skip
        named = type("Named", (), {"spec": spec, "weight_hash": "x"})()
        if fits:
            assert mean.check(named, "image") is mean
        else:
            with pytest.raises(ValueError, match="was taken with clip_ViT-B-32 and not with open_clip"):
                mean.check(named, "image")
    names = [spec for specs in PUBLISHED_FOR.values() for spec in specs]
    assert len(names) == len(set(names))


def test_the_mean_that_comes_with_a_model(tiny, other, own_cache, published_files):
    assert known_mean(tiny).data == ModalityMean.load(TINY).data and known_mean(other) is None
    (own_cache / "splice").mkdir(parents=True)
    path = published_files / "open_clip_ViT-B-32_image.pt"
    (own_cache / "splice" / path.name).write_bytes(path.read_bytes())
    named = type("Named", (), {"spec": "open_clip:ViT-B-32/laion2b_s34b_b79k", "weight_hash": "x"})()
    assert known_mean(named).vector.tolist() == ModalityMean.load(path).vector.tolist()


def test_the_committed_mean_is_the_tiny_models(tiny):
    """A mean of 300 other scenes lies within 4 joint standard errors of it; of 192 dimensions, 2 would do."""
    committed = ModalityMean.load(TINY)
    assert committed.weight_hash == tiny.weight_hash and committed.n == N == 8000
    assert committed.data == f"vlsae.world.scenes({N}, seed={SEED}, styles='seen')"
    fresh = take(300, SEED + 1, progress=False)
    assert fresh.data == f"vlsae.world.scenes(300, seed={SEED + 1}, styles='seen')" and fresh.n == 300
    joint = np.hypot(committed.standard_error, fresh.standard_error)
    distance = np.linalg.norm(committed.vector - fresh.vector)
    assert distance < 4 * joint
    assert 4 * joint < np.linalg.norm(committed.vector)  # so that the bound says something: zero would fail it
    # the errors themselves: the same population, 8,000 and 300 of it
    assert fresh.standard_error / committed.standard_error == pytest.approx(np.sqrt(8000 / 300), rel=0.1)
