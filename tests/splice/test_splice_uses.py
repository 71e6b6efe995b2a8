"""What is done with concept weights: edits, summaries, atoms in words, and the price of a penalty."""

import numpy as np
import pytest
import torch

from tests.backbones import models
from vlsae import load_images
from vlsae.dictionaries.base import DICTIONARIES
from vlsae.splice import SpLiCE, audit_edit, explain_atoms, trade_off

N = 12  # pictures


def sigma(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


# ---- edits -----------------------------------------------------------------------------------------------------------


def test_no_edit_leaves_every_bit(sp, found, x):
    for edited in (sp.intervene(found), sp.intervene(x), sp.intervene(found, add={"dog": 0.0})):
        assert edited.embeddings.tobytes() == found.embeddings.tobytes()
        np.testing.assert_allclose(edited.weights.toarray(), found.codes.dense(), atol=2e-3)  # x is decomposed again
        assert edited.mode == "error_preserving"
        np.testing.assert_allclose(edited.cosine, 1, atol=1e-6)
    assert (sp.intervene(found).weights != found.weights).nnz == 0
    absent = next(t for t in found.texts if not found.weights[:, [found.space.vocabulary.index(t)]].nnz)
    for edited in (sp.intervene(found, remove=[absent]), sp.intervene(found, clamp={absent: 0.0})):
        assert edited.embeddings.tobytes() == found.embeddings.tobytes()


def test_only_pictures_with_the_concept_move(sp, found):
    concept = found.top(0)[0][0]
    has = found.codes.dense()[:, sp.space.vocabulary.index(concept)] > 0
    edited = sp.intervene(found, remove=[concept])
    same = (edited.embeddings == found.embeddings).all(1)
    assert (same == ~has).all() and 0 < has.sum() < N


def test_an_error_preserving_edit_by_hand(sp, found, x):
    """`sigma(x + s (w' - w) C)` with `s = ||x - mu||`: what the concepts do not explain stays."""
    j, k, m = (sp.space.vocabulary.index(t) for t in ("dog", "red", "dotted"))
    first = found.texts[found.weights[0].indices[0]]
    edited = sp.intervene(found, remove=[first], clamp={"dog": 0.4}, add={"red": 0.3, "dotted": -0.05})
    w = found.codes.dense().astype(float)
    new = w.copy()
    new[:, sp.space.vocabulary.index(first)] = 0
    new[:, j] = 0.4
    new[:, k] += 0.3
    new[:, m] = np.maximum(new[:, m] - 0.05, 0)
    np.testing.assert_allclose(edited.weights.toarray(), new, atol=1e-6)
    assert (edited.weights.data > 0).all() and edited.weights.has_sorted_indices
    x, C = x.astype(float), sp.space.atoms.astype(float)
    s = np.linalg.norm(x - sp.mean("image", x), axis=1, keepdims=True)
    expected = sigma(x + s * (new - w) @ C)
    np.testing.assert_allclose(edited.embeddings, expected, atol=1e-6)
    np.testing.assert_allclose(edited.cosine, (expected * x).sum(1), atol=1e-6)
    assert edited.embeddings.dtype == np.float32 and edited.weights.dtype == np.float32


def test_splices_own_edit_keeps_the_concepts_alone(sp, found):
    edited = sp.intervene(found, remove=[found.top(0)[0][0]], mode="recompose")
    np.testing.assert_array_equal(edited.embeddings, sp.reconstruct(edited.weights))
    np.testing.assert_array_equal(sp.intervene(found, mode="recompose").embeddings, found.reconstruction)
    np.testing.assert_allclose(edited.cosine, (edited.embeddings * found.embeddings).sum(1), atol=1e-6)


def test_texts_are_edited_around_their_own_mean(sp):
    found = sp.decompose(["a red dog"])
    edited = sp.intervene(found, remove=["dog"])
    x, C = found.embeddings.astype(float), sp.space.atoms.astype(float)
    shift = (edited.weights - found.weights).toarray() @ C
    expected = sigma(x + np.linalg.norm(x - sp.space.mean) * shift)
    np.testing.assert_allclose(edited.embeddings, expected, atol=1e-6)


def test_an_edit_does_what_its_words_say(sp, tiny):
    """Without "dog" the text "a dog" is further from the text "dog"; "a cat" is nearer to it with "dog" added."""
    found = sp.decompose(["a dog", "a cat"])
    dog = tiny.encode_text(["dog"]).numpy()[0]
    near = found.embeddings @ dog
    assert (sp.intervene(found, remove=["dog"]).embeddings @ dog)[0] < near[0] - 0.1
    assert (sp.intervene(found, add={"dog": 0.5}).embeddings @ dog)[1] > near[1] + 0.1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"remove": ["dgo"]}, "'dgo' is not in the vocabulary 'tiny' of .* near it are .*dog"),
        ({"remove": "dog"}, "remove='dog' is a string; give a list of concepts"),
        ({"clamp": {"dog": -0.1}}, "weights are finite and at least 0"),
        ({"add": {"dog": float("nan")}}, "weights are finite and at least 0"),
        ({"remove": ["dog"], "add": {"dog": 1.0}}, "The concept 'dog' is edited twice"),
        ({"mode": "keep"}, "mode='keep'; use one of error_preserving, recompose"),
    ],
)
def test_wrong_edits_are_refused(sp, found, edit, message):
    with pytest.raises(ValueError, match=message):
        sp.intervene(found, **edit)


def test_a_classifier_before_and_after(sp, found):
    """One that looks at nothing but "dog" is right on all of them, and without the concept on the absent ones only."""
    j = sp.space.vocabulary.index(found.top(0)[0][0])
    has = (found.codes.dense()[:, j] > 0).astype(int)
    cut = []

    def predict(embeddings):
        weights = sp.decompose(embeddings).codes.dense() if len(cut) == 0 else np.zeros((N, j + 1))
        cut.append(1)
        return (weights[:, j] > 0).astype(int)

    audit = audit_edit(sp, found, has, [0] * N, predict, remove=[found.texts[j]])
    assert audit.before.average == 1.0 and audit.after.average == pytest.approx(1 - has.mean())
    assert audit.changed == pytest.approx(has.mean()) and audit.removed == (found.texts[j],)
    assert f"without {found.texts[j]}" in audit.table()


# ---- many pictures ---------------------------------------------------------------------------------------------------


def test_a_data_set_is_the_mean_of_its_pictures(sp, pictures, found):
    same, summary = sp.decompose_dataset(pictures, n_boot=50)
    dense = same.codes.dense().astype(float)
    np.testing.assert_allclose(summary.mean, dense.mean(0), atol=1e-7)
    np.testing.assert_array_equal(summary.count, (dense > 0).sum(0))
    assert summary.n == N and summary.texts == found.texts
    again = sp.decompose_dataset(pictures, n_boot=50)[1]
    assert (again.low == summary.low).all() and (again.high == summary.high).all()


def test_classes_are_summarised_apart(sp, folder, found):
    by_class = sp.decompose_classes(load_images(folder), n_boot=20)
    dense = found.codes.dense()
    assert list(by_class) == [0, 1]
    for c in (0, 1):
        np.testing.assert_allclose(by_class[c].mean, dense[c::2].mean(0), atol=2e-3)
    labels = [5, -1] * 6
    given = sp.decompose_classes(found, labels, n_boot=20)
    assert list(given) == [5] and given[5].n == 6
    np.testing.assert_allclose(given[5].mean, dense[::2].mean(0, dtype=float), atol=1e-7)


@pytest.mark.parametrize("labels", [None, [0, 1], ["a"] * N, [0.5] * N, [-1] * N])
def test_labels_that_are_none_are_refused(sp, found, labels):
    with pytest.raises(ValueError, match=f"labels with 0 classes were given for {N} images|2 labels with 2 classes"):
        sp.decompose_classes(found, labels)


# ---- atoms in words --------------------------------------------------------------------------------------------------


def _dictionary(atoms, site):
    made = DICTIONARIES.get("relu")(atoms.shape[1], len(atoms))
    with torch.no_grad():
        made.W_dec.copy_(torch.as_tensor(atoms))
    made.metadata["site"] = site
    return made


def test_planted_atoms_are_named_by_their_words(sp, tiny):
    """An atom that is the direction `C_j` has the solution `w_j = 1 - l1/2` alone, which explains `1 - (l1/2)^2` of it."""
    words = ["dog", "red", "striped", "white background"]
    words = [w for w in words if w in sp.space.vocabulary.texts]
    rng = np.random.default_rng(0)
    noise = sigma(rng.standard_normal((40, 192)))
    planted = sp.space.atoms[[sp.space.vocabulary.index(w) for w in words]]
    found = explain_atoms(_dictionary(np.vstack([planted, noise]).astype(np.float32), "vision.pooled"), tiny, sp.space)
    for i, word in enumerate(words):
        assert found.top(i) == [(word, pytest.approx(0.875, abs=2e-3))]
        assert found.explained[i] == pytest.approx(1 - 0.125**2, abs=1e-3)
        assert found.sentence(i).endswith(f"{word} (98 % explained, 2 % not)")
    assert len(words) >= 3
    # a random direction of 192 has cosine about N(0, 1/192) with each of K words; a few explain at most this much
    assert found.explained[len(words) :].mean() < 0.5 and (found.explained >= -1e-6).all()


def test_mixtures_come_back_as_mixtures(sp, tiny):
    j, k = (sp.space.vocabulary.index(t) for t in ("dog", "red"))
    mixture = sigma(0.8 * sp.space.atoms[j] + 0.5 * sp.space.atoms[k])[None]
    found = explain_atoms(_dictionary(mixture, "vision.pooled"), tiny, sp.space, l1=0.02)
    assert [t for t, _ in found.top(0, 2)] == ["dog", "red"] and found.explained[0] > 0.999
    two = explain_atoms(_dictionary(mixture, "vision.pooled"), tiny, sp.space, n_concepts=2, method="omp")
    assert {t for t, _ in two.top(0)} == {"dog", "red"} and two.explained[0] == pytest.approx(1, abs=1e-5)


def test_atoms_of_tokens_go_through_the_read_out(sp, tiny, pictures):
    tokens = tiny.tokens(list(pictures)[:2])
    mean = tokens.mean((0, 1))
    atoms = sigma(np.random.default_rng(0).standard_normal((6, tokens.shape[2]))).astype(np.float32)
    dictionary = _dictionary(atoms, "vision.-2.resid_post")
    found = explain_atoms(dictionary, tiny, sp.space, mean=mean, l1=0.1)
    z = sigma(tiny.readout_directions(torch.tensor(atoms), mean).double().numpy())
    residual = z - found.codes.dense() @ sp.space.atoms.astype(float)
    np.testing.assert_allclose(found.explained, 1 - (residual**2).sum(1), atol=1e-5)
    assert (2 * residual @ sp.space.atoms.T <= 0.1 + 2e-3).all()
    with pytest.raises(ValueError, match="explain_atoms needs `mean`"):
        explain_atoms(dictionary, tiny, sp.space)
    with pytest.raises(ValueError, match="The vocabulary was embedded with tiny, not with small ViT/32"):
        explain_atoms(dictionary, models.vit(32), sp.space, mean=mean)


# ---- what a penalty buys ---------------------------------------------------------------------------------------------


def test_a_larger_penalty_never_fits_better(tiny, x):
    """A theorem: along the penalty the residual does not fall and the sum of the weights does not rise.

    Up to the duality gap: adding the optimality of both penalties gives
    `(l - l') (|w'| - |w|) >= -(gap + gap')`, and likewise for the residual with the factor l.
    """
    l1s, fits, sums = (0.05, 0.1, 0.2, 0.4, 0.8), [], []
    for l1 in l1s:
        sp = SpLiCE(tiny, "tiny", l1=l1, progress=False)
        found = sp.decompose(x)
        z = sigma(x - sp.mean("image", x)).astype(float)
        w = found.codes.dense().astype(float)
        fits.append(((z - w @ sp.space.atoms) ** 2).sum(1))
        sums.append(w.sum(1))
    for i in range(len(l1s) - 1):
        slack = 2e-6 * l1s[i + 1] / (l1s[i + 1] - l1s[i]) + 1e-6
        assert (fits[i + 1] >= fits[i] - slack).all()
        assert (sums[i + 1] <= sums[i] + slack / l1s[i]).all()
        assert fits[i + 1].mean() > fits[i].mean() + 0.01


@pytest.fixture(scope="module")
def curve(sp, pictures, x):
    names = sorted({s.objects[0].name for s in pictures})
    labels = [names.index(s.objects[0].name) for s in pictures]
    return trade_off(
        sp, x, l1s=(0.05, 0.2, 0.5), labels=labels, class_names=names, captions=[s.caption for s in pictures]
    )


def test_the_points_of_the_curve_are_the_decompositions(sp, tiny, curve, x):
    for point in curve.points:
        alone = SpLiCE(tiny, "tiny", l1=point.l1, progress=False).decompose(x)
        assert point.l0 == pytest.approx(alone.l0.mean(), abs=0.5)
        assert point.cosine == pytest.approx(alone.cosine.mean(), abs=1e-3)
    assert (curve.dense.l1, curve.dense.l0, curve.n) == (0.0, 192.0, N)
    assert curve.dense.cosine == pytest.approx(1, abs=1e-6)


def test_the_dense_scores_are_those_of_the_model(curve, tiny, x, pictures):
    names = sorted({s.objects[0].name for s in pictures})
    right = [names[i] for i in tiny.zero_shot(list(pictures), names).argmax(1)]
    assert curve.dense.zero_shot == pytest.approx(np.mean([r == s.objects[0].name for r, s in zip(right, pictures)]))
    scores = x @ tiny.encode_text([s.caption for s in pictures]).numpy().T
    assert curve.dense.recall_at_1 == pytest.approx(np.mean(scores.argmax(1) == np.arange(N)))


def test_words_beat_random_directions_at_equal_sparsity(curve):
    """The random curve, interpolated at the words' number of concepts, lies below."""
    l0, cosine = (np.array([getattr(p, k) for p in curve.random])[::-1] for k in ("l0", "cosine"))
    assert (np.diff(l0) > 0).all()
    for point in curve.points:
        if l0[0] <= point.l0 <= l0[-1]:
            assert point.cosine > np.interp(point.l0, l0, cosine) + 0.05
    inside = [p for p in curve.points if l0[0] <= p.l0 <= l0[-1]]
    assert len(inside) >= 2 and curve.points[1].zero_shot > curve.random[1].zero_shot


def test_the_curve_as_text_and_for_machines(curve):
    lines = curve.table().splitlines()
    assert len(lines) == 8 and lines[0].endswith(f"{N} images") and lines[4].endswith("dense")
    assert all(line.endswith("random") for line in lines[5:])
    assert [p["l1"] for p in curve.as_dict()["points"]] == [0.05, 0.2, 0.5]


def test_the_curve_reconstructs_as_the_splice_it_is_given(tiny, x):
    inner = SpLiCE(tiny, "tiny", inner_normalise=True, l1=0.4, progress=False)
    point = trade_off(inner, x, l1s=(0.4,)).points[0]
    assert point.cosine == pytest.approx(inner.decompose(x).cosine.mean(), abs=1e-4)
    assert point.zero_shot is None and point.recall_at_1 is None


def test_labels_of_another_number_are_refused(sp, x):
    with pytest.raises(ValueError, match=f"2 labels were given for {N} images"):
        trade_off(sp, x, labels=[0, 1], class_names=["a", "b"])
    with pytest.raises(ValueError, match=f"1 captions were given for {N} images"):
        trade_off(sp, x, captions=["a"])
    with pytest.raises(ValueError, match="labels and class_names belong together"):
        trade_off(sp, x, class_names=["a"])
