"""A vocabulary in a model's space: unit rows, centred atoms, and the cache."""

import numpy as np
import pytest
import torch

from tests.backbones import models
from vlsae.splice.embedding import embed_vocabulary, unit
from vlsae.splice.vocabulary import Vocabulary

WORDS = Vocabulary(["dog", "cat", "red", "small dog", "car"], name="five")
pytestmark = pytest.mark.usefixtures("own_cache")


def _embed(model, words=WORDS, **options):
    return embed_vocabulary(model, words, progress=False, **options)


@pytest.fixture
def counted(tiny, monkeypatch):
    """Every text that the tiny model embeds, in order."""
    seen = []
    original = type(tiny).encode_text

    def encode_text(self, texts, **options):
        seen.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(type(tiny), "encode_text", encode_text)
    return seen


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_rows_are_the_models_unit_text_embeddings(tiny):
    space = _embed(tiny)
    np.testing.assert_array_equal(space.embeddings, tiny.encode_text(list(WORDS.texts)).numpy())
    np.testing.assert_allclose(np.linalg.norm(space.embeddings, axis=1), 1, atol=1e-6)
    assert space.embeddings.dtype == np.float32 and space.spec == "tiny"


def test_atoms_are_what_the_paper_says(tiny):
    """`C_j = sigma(t_j - mean_k t_k)`, in double precision."""
    space = _embed(tiny)
    t = tiny.encode_text(list(WORDS.texts)).double().numpy()
    centred = t - t.mean(0)
    np.testing.assert_allclose(space.mean, t.mean(0), atol=1e-7)
    np.testing.assert_allclose(space.atoms, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-6)
    assert space.atoms.dtype == np.float32 and space.prepared.shape == (5, 192)


def test_the_mean_is_that_of_the_chosen_concepts(tiny):
    whole, part = _embed(tiny), _embed(tiny, WORDS.head(3))
    np.testing.assert_allclose(
        part.embeddings, whole.embeddings[:3], atol=1e-6
    )  # batches of other sizes round otherwise
    np.testing.assert_allclose(part.mean, whole.embeddings[:3].mean(0), atol=1e-7)
    assert np.linalg.norm(part.mean - whole.mean) > 0.01


def test_templates_are_put_around_the_concepts(tiny, counted):
    _embed(tiny, Vocabulary(["dog", "cat"], template="a photo of a {}"))
    assert counted == ["a photo of a dog", "a photo of a cat"]


def test_concepts_that_embed_alike_have_no_direction(tiny, monkeypatch):
    """A mean of equal rows leaves rounding errors; they are no direction."""
    row = tiny.encode_text(["dog"])
    monkeypatch.setattr(type(tiny), "encode_text", lambda self, texts: row.expand(len(texts), -1).clone())
    space = _embed(tiny)
    assert not space.atoms.any() and np.isfinite(space.atoms).all()


def test_unit_keeps_kind_and_zeros():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0], [0.0, -1e-3]], np.float32)
    assert unit(x).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, 0], [0, -1]]
    assert unit(x).dtype == np.float32 and unit(x.astype(np.float64)).dtype == np.float64


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_model_without_a_text_tower_is_refused():
    model = models.BUILDERS["hf DINOv2"]()
    with pytest.raises(ValueError, match="small dinov2 has no text tower; SpLiCE needs a CLIP or SigLIP model"):
        _embed(model)


@pytest.mark.parametrize("n", [0, 1])
def test_less_than_two_concepts_are_refused(tiny, n):
    with pytest.raises(ValueError, match=f"The vocabulary 'five' has {n} concepts; give at least 2"):
        _embed(tiny, WORDS.keep(range(n)))


def test_embeddings_that_are_not_finite_name_the_concept(tiny, monkeypatch, own_cache):
    def broken(self, texts):
        found = torch.ones(len(texts), 4)
        found[2] = float("nan")
        return found

    monkeypatch.setattr(type(tiny), "encode_text", broken)
    with pytest.raises(ValueError, match="The embedding of 'red' is not finite; load the model in float32"):
        _embed(tiny)
    assert not list(own_cache.rglob("*.npy"))


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_hit_does_not_call_the_model(tiny, counted, own_cache):
    first = _embed(tiny)
    assert counted == list(WORDS.texts)
    again = _embed(tiny)
    assert counted == list(WORDS.texts)  # nothing more
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert again.key == first.key == f"{tiny.weight_hash}-{WORDS.hash}"
    assert [p.name for p in (own_cache / "vocabularies").iterdir()] == [f"{first.key}.npy"]


def test_names_and_facts_do_not_matter_but_words_order_and_template_do(tiny, counted, own_cache):
    _embed(tiny)
    counted.clear()
    _embed(tiny, Vocabulary(WORDS.texts, name="other", provenance={"a": 1}))
    assert counted == []
    for changed in (Vocabulary(WORDS.texts[::-1]), Vocabulary(WORDS.texts, template="a {}"), WORDS.head(4)):
        counted.clear()
        _embed(tiny, changed)
        assert counted == changed.prompts
    assert len(list(own_cache.rglob("*.npy"))) == 4


def test_other_weights_are_another_entry(own_cache):
    model = models.vit(32)
    first = _embed(model)
    with torch.no_grad():
        model.model.text_projection[0, 0] += 1
    del model.__dict__["weight_hash"]  # the same architecture and name, after a fine-tuning
    second = _embed(model)
    assert first.spec == second.spec and first.key != second.key
    assert np.abs(first.embeddings - second.embeddings).max() > 1e-4
    assert len(list(own_cache.rglob("*.npy"))) == 2


@pytest.mark.parametrize("kind", ["cut", "empty", "noise", "a zip", "rows", "width", "float64", "nan", "pickle"])
def test_a_corrupt_entry_is_made_again_with_a_warning(kind, tiny, counted, own_cache, caplog):
    good = _embed(tiny).embeddings
    path = next(own_cache.rglob("*.npy"))
    content = path.read_bytes()
    simple = {"cut": content[:-100], "empty": b"", "noise": b"\x00" * 500, "a zip": b"PK\x03\x04" + b"x" * 100}
    if kind in simple:
        path.write_bytes(simple[kind])
    else:
        nan = good.copy()
        nan[1, 1] = np.nan
        wrong = {"rows": good[:3], "width": good[0], "float64": good.astype(float), "nan": nan,
                 "pickle": np.array([{}, {}, {}, {}, {}], dtype=object)}[kind]  # fmt: skip
        np.save(path, wrong, allow_pickle=True)
    counted.clear()
    np.testing.assert_array_equal(_embed(tiny).embeddings, good)
    assert counted == list(WORDS.texts)
    assert f"The cached embeddings {path.name} cannot be read" in caplog.text and "made again" in caplog.text
    assert path.read_bytes() == content


def test_a_full_disk_costs_the_cache_and_not_the_result(tiny, own_cache, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert _embed(tiny).embeddings.shape == (5, 192)
    assert "could not be cached at" in caplog.text and "No space left" in caplog.text
    assert not list(own_cache.rglob("[!.]*.npy"))


def test_a_cache_folder_that_cannot_be_made_only_warns(tiny, own_cache, caplog):
    own_cache.write_text("a file in its place")
    assert _embed(tiny).embeddings.shape == (5, 192)
    assert "could not be cached at" in caplog.text


def test_without_cache_nothing_is_read_or_written(tiny, counted, own_cache):
    _embed(tiny, cache=False)
    assert not own_cache.exists()
    _embed(tiny)
    _embed(tiny, cache=False)
    assert counted == list(WORDS.texts) * 3
