"""SpLiCE from end to end: the equations by hand, the settings, and the way back."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import Lasso

from tests.backbones import models
from vlsae.splice import ModalityMean, SpLiCE, Vocabulary
from vlsae.splice.means import TINY
from vlsae.world import scenes

N = 12  # pictures


def sigma(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


# ---- the equations ---------------------------------------------------------------------------------------------------


def test_the_equations_of_the_paper_by_hand(sp, tiny, found, x):
    """`z`, `w` by scikit-learn's Lasso with `alpha = l1 / 2d`, and `xhat`, all in double precision."""
    t = tiny.encode_text(list(Vocabulary.load("tiny").texts)).double().numpy()
    C = sigma(t - t.mean(0))
    mu = ModalityMean.load(TINY).vector.astype(float)
    z = sigma(sigma(x.astype(float)) - mu)
    lasso = Lasso(alpha=0.25 / (2 * z.shape[1]), fit_intercept=False, positive=True, max_iter=100_000, tol=1e-12)
    w = np.stack([lasso.fit(C.T, row).coef_.copy() for row in z])
    # a duality gap of 1e-6 allows weights to differ by sqrt(gap) over the root of the restricted curvature
    np.testing.assert_allclose(found.codes.dense(), w, atol=2e-3)
    ours, theirs = (((z - v @ C) ** 2).sum(1) + 0.25 * v.sum(1) for v in (found.codes.dense().astype(float), w))
    assert np.abs(ours - theirs).max() < 2e-6  # both within a gap of 1e-6 of the optimum
    assert (found.l0 == (found.codes.dense() > 0).sum(1)).all() and (found.codes.l1 == 0.25).all()
    v = found.codes.dense().astype(float)
    np.testing.assert_allclose(found.reconstruction, sigma(v @ C + mu), atol=1e-6)
    np.testing.assert_allclose(found.cosine, (sigma(v @ C + mu) * x).sum(1), atol=1e-6)


def test_the_released_code_normalises_before_the_mean_is_added(tiny, sp, found, x):
    inner = SpLiCE(tiny, "tiny", inner_normalise=True, progress=False).decompose(x)
    np.testing.assert_allclose(inner.codes.dense(), found.codes.dense(), atol=2e-3)  # the weights are the same
    C, mu = sp.space.atoms.astype(float), sp.mean("image", x)
    np.testing.assert_allclose(inner.reconstruction, sigma(sigma(found.weights @ C) + mu), atol=1e-6)
    assert np.abs(inner.reconstruction - found.reconstruction).max() > 0.01


def test_the_certificates_hold(sp, found, x):
    """The KKT conditions of `||z - wC||^2 + l1 ||w||_1`, which no solver can talk its way around.

    The gap bounds `||(w - w*) C||^2`, so that a correlation is off by at most sqrt(gap); 2 of them, and 1e-6 of rounding.
    """
    C, z = sp.space.atoms.astype(float), sigma(x - sp.mean("image", x)).astype(float)
    w = found.codes.dense().astype(float)
    gradient = 2 * (w @ C - z) @ C.T + 0.25
    slack = 2 * np.sqrt(found.codes.gap)[:, None] + 1e-6
    assert (found.codes.gap <= 1e-6).all() and (w >= 0).all()
    assert (gradient >= -slack).all()
    assert (np.abs(gradient) <= slack)[w > 0].all()


def test_texts_are_centred_with_the_vocabularys_mean(sp, tiny):
    texts = ["a small red dog", "cat"]
    found = sp.decompose(texts)
    t = tiny.encode_text(texts).double().numpy()
    z, C = sigma(t - sp.space.mean), sp.space.atoms.astype(float)
    np.testing.assert_allclose(found.reconstruction, sigma(found.weights @ C + sp.space.mean), atol=1e-6)
    assert found.modality == "text" and found.names == tuple(texts) and found.labels.tolist() == [-1, -1]
    residual = z - found.codes.dense() @ C
    assert (2 * residual @ C.T <= 0.25 + 2e-3 + 1e-6).all()
    # the text of a concept is that concept: z is the atom itself, and the Lasso shrinks its weight by l1 / 2
    assert found.top(1) == [("cat", pytest.approx(1 - 0.25 / 2, abs=1e-3))]


# ---- settings --------------------------------------------------------------------------------------------------------


def test_one_penalty_under_two_names(tiny, sp, x, found):
    assert sp.l1 == 0.25 and sp.n_concepts is None
    lam = SpLiCE(tiny, "tiny", lam=0.125, progress=False)
    assert lam.l1 == 0.25
    np.testing.assert_allclose(lam.decompose(x).codes.dense(), found.codes.dense(), atol=2e-3)
    for method, exactly in [("omp", True), ("path", False), ("active_set", False)]:
        counted = SpLiCE(tiny, "tiny", n_concepts=4, method=method, progress=False)
        l0 = counted.decompose(x).l0
        assert counted.l1 is None and ((l0 == 4).all() if exactly else ((l0 <= 4) & (l0 > 0)).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1": 0.2, "lam": 0.1}, "l1=0.2 and lam=0.1 were given; give exactly one"),
        ({"l1": 0.2, "n_concepts": 3}, "n_concepts=3 and a penalty were given; give one of them"),
        ({"lam": 0.2, "n_concepts": 3}, "n_concepts=3 and a penalty were given; give one of them"),
        ({"l1": 0.0}, "The penalty is 0.0; it must be finite and above 0"),
        ({"l1": float("nan")}, "The penalty is nan; it must be finite and above 0"),
        ({"n_concepts": 0}, "n_concepts=0; give a whole number from 1 to"),
        ({"n_concepts": 1000}, "n_concepts=1000; give a whole number from 1 to"),
        ({"method": "omp"}, "omp"),
        ({"method": "lars"}, "lars"),
        ({"n_concepts": 3, "method": "fista"}, "method='fista' does not take n_concepts"),
        ({"image_mean": True}, "image_mean=True; give None for the usual mean"),
        ({"image_mean": "nowhere.json"}, "There is no mean nowhere.json"),
        ({"size": 0}, "size=0; give at least 1"),
        ({"vocabulary": "laoin"}, "Unknown vocabulary 'laoin'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_embedded(tiny, settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        SpLiCE(tiny, **{"vocabulary": "tiny", "progress": False, **settings})


def test_the_most_frequent_concepts_only(tiny, x):
    head = SpLiCE(tiny, "tiny", size=20, progress=False)
    assert head.space.vocabulary.texts == Vocabulary.load("tiny").texts[:20]
    assert head.decompose(x).weights.shape == (N, 20)


def test_the_mean_of_the_batch_needs_64(tiny):
    many = tiny.encode_image(list(scenes(64, seed=4))).numpy()
    batch = SpLiCE(tiny, "tiny", image_mean="batch", progress=False)
    with pytest.raises(ValueError, match="The mean of 63 embeddings is no mean of a modality; give 64 or more"):
        batch.decompose(many[:63])
    mu = many.mean(0, dtype=np.float64)
    np.testing.assert_allclose(batch.mean("image", many), mu, atol=1e-7)
    given = ModalityMean.of_embeddings(many, "image", data="x", spec="tiny", weight_hash=tiny.weight_hash)
    same = SpLiCE(tiny, "tiny", image_mean=given, progress=False).decompose(many)
    ours = batch.decompose(many)
    np.testing.assert_allclose(ours.codes.dense(), same.codes.dense(), atol=2e-3)
    np.testing.assert_array_equal(batch.reconstruct(ours), ours.reconstruction)  # the batch is its own
    np.testing.assert_array_equal(batch.intervene(ours).embeddings, ours.embeddings)


def test_without_a_mean_nothing_is_taken_away_or_added(tiny, sp, x):
    plain = SpLiCE(tiny, "tiny", image_mean=False, text_mean=False, l1=0.2, progress=False)
    found = plain.decompose(x)
    np.testing.assert_allclose(found.reconstruction, sigma(found.weights @ sp.space.atoms.astype(float)), atol=1e-6)
    t = tiny.encode_text(["dog"]).numpy()
    assert (2 * (t - plain.decompose(["dog"]).weights @ sp.space.atoms) @ sp.space.atoms.T <= 0.2 + 2e-3).all()


def test_a_model_without_a_known_mean_says_how_to_get_one(monkeypatch):
    model = models.vit(32)
    plain = SpLiCE(model, "tiny", progress=False)
    assert plain.decompose(["a dog"]).modality == "text"  # texts need no image mean
    monkeypatch.setattr(type(model), "encode_image", lambda *_, **__: pytest.fail("embedded for nothing"))
    with pytest.raises(ValueError, match=r"No image mean is known for small ViT/32\. Take one .* `vlsae mean FOLDER"):
        plain.decompose(scenes(2))


@pytest.mark.parametrize("name", ["open_clip ViT/16", "hf CLIP", "hf SigLIP", "timm SigLIP"])
def test_other_architectures_decompose_with_a_mean_of_their_own(name, tmp_path):
    """Real code paths with random weights: nothing is named rightly, but every equation holds."""
    model = models.BUILDERS[name]()
    pictures = list(scenes(6, seed=2))
    mean = ModalityMean.of(model, pictures, progress=False)
    sp = SpLiCE(model, "tiny", image_mean=mean.save(tmp_path / "mean.json"), l1=0.1, progress=False)
    found = sp.decompose(pictures)
    x = model.encode_image(pictures).numpy().astype(float)
    z, C, w = sigma(x - mean.vector), sp.space.atoms.astype(float), found.codes.dense().astype(float)
    assert found.codes.gap.max() <= 1e-6 and found.l0.min() >= 1
    assert (2 * (z - w @ C) @ C.T <= 0.1 + 2e-3 + 1e-4).all()
    np.testing.assert_allclose(found.reconstruction, sigma(w @ C + mean.vector), atol=1e-5)
    assert sp.decompose(["a red dog"]).codes.gap.max() <= 1e-6


# ---- the result ------------------------------------------------------------------------------------------------------


def test_the_strongest_concepts_in_every_form(found, sp):
    for i in range(N):
        row = found.codes.dense()[i]
        top = found.top(i)
        assert [w for _, w in top] == sorted((float(w) for w in row[row > 0]), reverse=True)
        assert all(row[sp.space.vocabulary.index(t)] == np.float32(w) for t, w in top)
        assert found.top(i, 2) == top[:2]
        said = found.as_dict(i)
        assert [(c["concept"], c["weight"]) for c in said["concepts"]] == top and said["l0"] == len(top)
    lines = found.table(0, 3).splitlines()
    assert len(lines) == 5 and lines[0].startswith(found.top(0)[0][0]) and lines[0].endswith("#" * 30)
    assert lines[3] == f"... and {found.l0[0] - 3} more"
    assert lines[4].startswith(f"{found.l0[0]} concepts, cosine {found.cosine[0]:.3f}, duality gap ")


def test_a_penalty_above_every_correlation_leaves_nothing(tiny, x):
    """`w = 0` exactly where `l1 >= 2 max_j C_j.z`, which is at most 2."""
    nothing = SpLiCE(tiny, "tiny", l1=2.5, progress=False)
    found = nothing.decompose(x)
    assert (found.l0 == 0).all() and found.top(0) == []
    assert found.table(0) == "no concept: the penalty is larger than every correlation"
    np.testing.assert_allclose(found.reconstruction, np.tile(sigma(nothing.mean("image", x)), (N, 1)), atol=1e-6)


def test_the_truth_comes_out(sp, pictures):
    """What the scenes show is among their concepts; README's promise, on pictures it was not tuned on."""
    found = sp.decompose(pictures)
    shown = [{o.name for o in s.objects} for s in pictures]
    hits = [name in dict(found.top(i)) for i, names in enumerate(shown) for name in names]
    assert np.mean(hits) > 0.9


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [False, True])
def test_decompose_and_reconstruct_are_inverse_in_the_cone_of_the_concepts(tiny, sp, inner):
    """Without centring `z = x = sigma(wC)` lies in the cone, and the optimum is no worse than the planted `w / ||wC||`.

    So `||z - w'C||^2 <= l1 ||w||_1 / ||wC|| + gap`, at most 4e-6 + 1e-6 here: .0023 of the embedding in all its numbers.
    """
    rng = np.random.default_rng(0)
    plain = SpLiCE(tiny, "tiny", l1=1e-6, image_mean=False, inner_normalise=inner, progress=False)
    w = np.zeros((5, len(sp.space.vocabulary)), np.float32)
    for row in w:
        row[rng.choice(len(row), 4, replace=False)] = rng.uniform(0.3, 1, 4)
    planted = plain.reconstruct(w)
    found = plain.decompose(planted)
    np.testing.assert_allclose(found.reconstruction, planted, atol=2e-3)
    np.testing.assert_allclose(plain.decompose(found.reconstruction).reconstruction, planted, atol=4e-3)
    np.testing.assert_allclose(np.linalg.norm(planted, axis=1), 1, atol=1e-6)


def test_with_a_mean_the_query_is_made_to_lie_in_the_cone(tiny, sp):
    """`x = mu + s v` is a unit vector with `sigma(x - mu) = v` for the root s of `||mu + s v|| = 1`; v is a unit `wC`."""
    mu, C = sp.mean("image", None).astype(float), sp.space.atoms.astype(float)
    fine = SpLiCE(tiny, "tiny", l1=1e-6, progress=False)
    w = np.zeros(len(C))
    for text, weight in [("dog", 0.8), ("red", 0.5), ("white background", 0.3)]:
        w[sp.space.vocabulary.index(text)] = weight
    w /= np.linalg.norm(w @ C)
    v = w @ C
    s = -mu @ v + np.sqrt((mu @ v) ** 2 + 1 - mu @ mu)
    found = fine.decompose((mu + s * v)[None])
    residual = v - found.weights @ C
    assert (residual**2).sum() <= 1e-6 * w.sum() + 2e-6  # the penalty of the planted weights, and the gap
    np.testing.assert_allclose(found.reconstruction[0], sigma(v + mu), atol=4e-3)


def test_reconstruct_takes_weights_of_any_form(sp, found):
    for weights in (found, found.weights, found.codes.dense(), scipy.sparse.coo_matrix(found.weights)):
        np.testing.assert_allclose(sp.reconstruct(weights), found.reconstruction, atol=1e-6)
    text = sp.decompose(["a red dog"])
    np.testing.assert_array_equal(sp.reconstruct(text), text.reconstruction)
    np.testing.assert_array_equal(sp.reconstruct(text.weights, modality="text"), text.reconstruction)
    with pytest.raises(ValueError, match=r"Weights have shape \(1, 3\); the vocabulary has"):
        sp.reconstruct(np.ones((1, 3)))


def test_a_decomposition_of_another_vocabulary_is_refused(tiny, sp, x):
    """Equal numbers of concepts would otherwise give wrong embeddings without a word."""
    other = SpLiCE(tiny, Vocabulary(Vocabulary.load("tiny").texts[::-1]), progress=False)
    foreign = other.decompose(x)
    for use in (sp.reconstruct, sp.intervene):
        with pytest.raises(ValueError, match="made with another model or vocabulary"):
            use(foreign)
