"""SpLiCE against the truth of drawn scenes: right words, linearity, the modality gap, and repair of a shortcut."""

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression

from vlsae.demo_words import probe_scores
from vlsae.metrics.words import words_against_truth
from vlsae.splice import SpLiCE, audit_edit, solve
from vlsae.splice.audits import rank_spurious
from vlsae.splice.embedding import unit
from vlsae.world import Scene, scenes

N = 500
SEVERAL = (0.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def splice(tiny):
    return SpLiCE(tiny, "tiny", progress=False)


@pytest.fixture(scope="module")
def world(splice):
    """Scenes of two to four objects: centred embeddings of a training and a test half, and what is true of each."""
    drawn = scenes(2 * N, seed=77, n_objects=SEVERAL, styles="seen")
    x = splice.model.encode_image(drawn).numpy()
    known = set(splice.space.vocabulary.texts)
    true = [{w for words in drawn[i].labels.values() for w in words} & known for i in range(2 * N)]
    objects = [set(drawn[i].labels["object"]) for i in range(2 * N)]
    return x, unit(x - splice.mean("image", x)), true, objects


@pytest.fixture(scope="module")
def scores(splice, world):
    x, z, true, objects = world
    texts = splice.space.vocabulary.texts
    present = np.array([[t in words for t in texts] for words in true[:N]], dtype=float)
    views = {l1: solve(z[N:], splice.space.prepared, l1).weights for l1 in (0.2, 0.25, 0.3, 0.4)}
    views["cosine"] = z[N:] @ splice.space.atoms.T
    views["uncentred"] = x[N:] @ splice.space.embeddings.T
    views["probe"] = probe_scores(z[:N], present, z[N:])
    found = {k: words_against_truth(v, texts, objects[N:], true[N:]) for k, v in views.items()}
    return {k: (m["recall"].value, m["precision"].value) for k, m in found.items()}


def test_objects_are_among_the_top_words_and_the_words_are_true(scores):
    """The issue asks for recall .92 at precision .65; measured .98 and .87 on 1,000 scenes, standard error .005."""
    recall, precision = scores[0.25]
    assert recall >= 0.965 and precision >= 0.85


def test_splice_beats_ranking_by_cosine(scores):
    """Sparse weights explain each other away, so that a word like the true one is not said too: at no loss of recall the
    words are right more often by far more than the standard error of .01."""
    recall, precision = scores[0.3]
    assert recall >= scores["cosine"][0] - 0.005
    assert precision >= scores["cosine"][1] + 0.12
    assert recall >= scores["uncentred"][0] + 0.3  # raw cosines are dominated by what all images share


def test_splice_is_near_a_supervised_probe(scores):
    """A probe that saw N labelled scenes is the reference; SpLiCE saw none and recalls at least as many objects."""
    assert scores[0.25][0] >= scores["probe"][0] - 0.03


def _linear(z, a, b):
    """Weights of `z ~ w_a a + w_b b`, and the cosine reached."""
    w = np.array([nnls(np.stack([x, y], 1).astype(float), t.astype(float))[0] for t, x, y in zip(z, a, b, strict=True)])
    return w, np.einsum("ne,ne->n", unit(w[:, :1] * a + w[:, 1:] * b), z)


def test_two_objects_are_near_the_average_of_each_alone(splice):
    """The paper's check of linearity (section 4, table 1): both weights near one half, and the parts of other scenes do
    not do. Measured .53 and .53 with a standard deviation of .09, cosine .86 against .11."""
    two = scenes(150, seed=31, n_objects=(0, 1, 0, 0), styles="seen")
    alone = [
        [Scene(type(s.layout)(**{**s.layout.__dict__, "objects": (s.objects[i],)}), s.resolution) for s in two]
        for i in (0, 1)
    ]
    mean = splice.mean("image", np.zeros((0, 0)))
    z, a, b = (unit(splice.model.encode_image(list(x)).numpy() - mean) for x in (two, *alone))
    w, cosine = _linear(z, a, b)
    assert np.abs(w.mean(0) - 0.5).max() < 0.08
    assert cosine.mean() > 0.82
    other = np.random.default_rng(0).permutation(len(two))
    assert _linear(z, a[other], b[other])[1].mean() < 0.3


def test_texts_are_linear_too(splice):
    two = scenes(150, seed=31, n_objects=(0, 1, 0, 0), styles="seen")
    names = [[o.name for o in s.objects] for s in two]
    both, a, b = ([t.format(*n) for n in names] for t in ("a {0} and a {1}", "a {0}", "a {1}"))
    z, a, b = (unit(splice.model.encode_text(x).numpy() - splice.space.mean) for x in (both, a, b))
    w, cosine = _linear(z, a, b)
    assert np.abs(w.mean(0) - 0.5).max() < 0.15 and cosine.mean() > 0.8


def test_centring_removes_a_modality_gap_that_was_put_in():
    """Texts `sigma(u + a)` and images `sigma(u' + b)` with fixed offsets: concepts are recovered after centring only."""
    rng = np.random.default_rng(0)
    d, K, n = 128, 300, 200
    words = unit(rng.standard_normal((K, d)))
    text_offset, image_offset = (1.5 * unit(rng.standard_normal((1, d))) for _ in range(2))
    texts = unit(words + text_offset)
    chosen = np.array([rng.choice(K, 3, replace=False) for _ in range(n)])
    images = unit(unit(words[chosen].sum(1)) + image_offset)
    atoms = unit(texts - texts.mean(0))

    def hits(z, C):
        weights = solve(z, C, 0.2).dense()
        return np.mean([len(set(np.argsort(-w)[:3]) & set(c)) / 3 for w, c in zip(weights, chosen, strict=True)])

    others = rng.permutation(n)
    raw, centred = images @ texts.T, unit(images - images.mean(0)) @ atoms.T
    assert abs(centred[others].mean()) < 0.01 < abs(raw.mean())  # unrelated pairs lie at right angles after centring
    assert hits(unit(images - images.mean(0)), atoms) > 0.98
    assert hits(images, texts) < 0.6


GROUPS, GROUNDS = ("animal", "food"), ("green", "blue")


def _confounded(seed, n, agreement):
    """Scenes of one animal or food, whose ground agrees with the class with some probability."""
    rng, pool = np.random.default_rng(seed), scenes(200_000, seed=seed, n_objects=(1, 0, 0, 0), styles="seen")
    found, labels, grounds = [], [], []
    for scene in pool:
        if len(found) == n:
            break
        if scene.objects[0].group not in GROUPS or scene.layout.background not in GROUNDS:
            continue
        label, ground = GROUPS.index(scene.objects[0].group), GROUNDS.index(scene.layout.background)
        if rng.random() < (agreement if label == ground else 1 - agreement):
            found.append(scene)
            labels.append(label)
            grounds.append(ground)
    return found, np.array(labels), np.array(grounds)


@pytest.fixture(scope="module")
def shortcut(splice):
    """A probe trained where the ground gives the class away, and 500 balanced test scenes."""
    train, y, g = _confounded(5, 100, 0.95)
    test, labels, grounds = _confounded(6, 500, 0.5)
    seen = splice.decompose(train)
    probe = LogisticRegression(C=1.0, max_iter=2000).fit(seen.embeddings, y)
    return probe, seen, y, g, splice.decompose(test), labels, grounds


def test_removing_the_spurious_concept_repairs_the_worst_group(splice, shortcut):
    """Measured on 800 scenes: worst group .75 before, .95 after; two unrelated concepts change it by less than .01."""
    probe, *_, found, labels, grounds = shortcut
    named = [f"{g} background" for g in GROUNDS]
    audit = audit_edit(splice, found, labels, grounds, probe.predict, remove=named)
    assert audit.before.worst.accuracy < 0.82
    assert audit.after.worst.accuracy > 0.92
    assert audit.after.average > audit.before.average
    control = audit_edit(splice, found, labels, grounds, probe.predict, remove=["red", "striped"])
    assert abs(control.after.worst.accuracy - audit.before.worst.accuracy) < 0.02


def test_the_spurious_concepts_are_found_without_being_told(splice, shortcut):
    """The ground of each class leads the ranking; food's own words come after, animal's own word far behind."""
    _, seen, y, *_ = shortcut
    classes = splice.model.classifier(GROUPS).numpy()
    ranking = rank_spurious(seen.weights, y, seen.texts, splice.space.embeddings, classes)
    assert {row.text for row in ranking.rows[:2]} == {f"{c} background" for c in GROUNDS}
    assert {row.text: row.label for row in ranking.rows[:2]} == {"green background": 0, "blue background": 1}
