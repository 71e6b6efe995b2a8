"""The concept index: set semantics, scores, explanations and the parser's errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.splice.audits.planted import coins
from vlsae.splice.audits import ConceptIndex, QueryError
from vlsae.splice.audits.query import And, Not, Or, Term, parse

TEXTS = ["dog", "red", "grass", "polar bear", "AND", "a:b"]
WEIGHTS = coins(np.random.default_rng(0), 60, np.full(len(TEXTS), 0.5))
DENSE = WEIGHTS.toarray()
INDEX = ConceptIndex(WEIGHTS, TEXTS)

terms = st.builds(Term, st.sampled_from(TEXTS), st.sampled_from([0.0, 0.1, 0.2, 9.0]), st.just(0))
trees = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(lambda parts: And(tuple(parts)), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda parts: Or(tuple(parts)), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def _write(node, draw_and):
    if isinstance(node, Term):
        return f'"{node.text}"' + (f":{node.least}" if node.least else "")
    if isinstance(node, Not):
        return f"NOT ({_write(node.part, draw_and)})"
    joint = " OR " if isinstance(node, Or) else draw_and
    return joint.join(f"({_write(part, draw_and)})" for part in node.parts)


def _set(node):
    """Plain booleans."""
    if isinstance(node, Term):
        column = DENSE[:, TEXTS.index(node.text)]
        return (column > 0) & (column >= node.least)
    if isinstance(node, Not):
        return ~_set(node.part)
    return (np.logical_and if isinstance(node, And) else np.logical_or).reduce([_set(p) for p in node.parts])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(trees, st.sampled_from([" AND ", " ", "\t\n"]))
def test_hits_are_those_of_plain_sets(tree, joint):
    found = INDEX.query(_write(tree, joint), top=100)
    assert sorted(found.rows) == np.flatnonzero(_set(tree)).tolist()
    assert found.n_matched == len(found) and found.n == 60
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True) and all(0 < s <= 1 for s in scores)
    for hit in found:
        assert all(m.weight == DENSE[hit.row, TEXTS.index(m.text)] > 0 for m in hit.matched)


def test_scores_are_minimum_and_maximum_of_the_shares():
    share = DENSE / DENSE.max(0)
    both, either = INDEX.query("dog AND red", top=60), INDEX.query("dog OR red", top=60)
    for hit in both:
        assert hit.score == pytest.approx(min(share[hit.row, 0], share[hit.row, 1]), rel=1e-12)
        assert {m.text for m in hit.matched} == {"dog", "red"}
    for hit in either:
        assert hit.score == pytest.approx(max(share[hit.row, 0], share[hit.row, 1]), rel=1e-12)
        assert hit.matched[0].share == hit.score


def test_precedence_and_thresholds():
    tree = parse("dog OR NOT red grass:.2")
    assert isinstance(tree, Or) and isinstance(tree.parts[1], And) and isinstance(tree.parts[1].parts[0], Not)
    assert tree.parts[1].parts[1] == Term("grass", 0.2, 15)
    assert parse('"polar bear": 1e-2') == Term("polar bear", 0.01, 0)
    assert parse('"AND" "a:b"') == And((Term("AND", 0.0, 0), Term("a:b", 0.0, 6)))
    least = INDEX.query("dog:0.2", top=60)
    assert least.rows and set(least.rows) == set(np.flatnonzero(DENSE[:, 0] >= 0.2))
    assert set(INDEX.query("NOT dog:0.2", top=60).rows) == set(np.flatnonzero(DENSE[:, 0] < 0.2))


def test_a_concept_named_twice_is_explained_by_the_lower_threshold():
    for hit in INDEX.query("dog OR dog:0.3", top=60):
        assert [m.text for m in hit.matched] == ["dog"]


def test_planted_images_are_found():
    rng = np.random.default_rng(1)
    texts = [f"c{i}" for i in range(400)]
    w = coins(rng, 500, np.full(400, 0.03)).tolil()
    w[:, [7, 9]] = 0
    w[[5, 50, 499], 7] = [0.3, 0.5, 0.4]
    w[[5, 50], 9] = [0.4, 0.2]
    index = ConceptIndex(w.tocsr(), texts, [f"img{i}" for i in range(500)])
    assert [h.id for h in index.query("c7")] == ["img50", "img499", "img5"]
    assert [h.id for h in index.query("c7 AND c9")] == ["img5", "img50"]  # .6 and 1, 1 and .5: minima .6 and .5
    assert [h.id for h in index.query("c7 NOT c9")] == ["img499"]
    assert "img50" in str(index.query("c7")) and "c7 0.5" in str(index.query("c7"))
    assert index.query("c7", top=1).as_dict()["n_matched"] == 3


@pytest.mark.parametrize(
    "query, at, message",
    [
        ("", 0, "expected a concept, NOT or '\\(', found 'the end'"),
        ("   ", 3, "found 'the end'"),
        ("dog AND", 7, "found 'the end'"),
        ("dog AND (red", 12, "expected '\\)' for the '\\(' at position 8"),
        ("dog)", 3, "expected AND, OR, NOT, a concept or the end, found '\\)'"),
        ("OR dog", 0, "found 'OR'"),
        ("dog OR OR red", 7, "found 'OR'"),
        ("dog NOT", 7, "found 'the end'"),
        ('dog "polar', 4, "never closed"),
        ("dog:", 3, "expected a weight >= 0"),
        ("dog:x", 3, "expected a weight >= 0"),
        ("dog:-1", 3, "expected a weight >= 0"),
        ("dog:nan", 3, "expected a weight >= 0"),
        (":0.1", 0, "expected a concept"),
        ("()", 1, "found '\\)'"),
        ("dog gras", 4, "'gras' is not among the 6 known; near it: 'grass'"),
        ("dog and red", 4, "Operators are written in capitals"),
        ("polar bear", 0, "'polar' is not among the 6 known; near it: 'polar bear'"),
        ("(" * 51 + "dog" + ")" * 51, 50, "more than 50"),
    ],
)
def test_faults_are_located(query, at, message):
    with pytest.raises(QueryError, match=message) as caught:
        INDEX.query(query)
    assert caught.value.position == at and isinstance(caught.value, ValueError)


def test_like_is_the_cosine_without_the_removed():
    found = INDEX.like(3, without=["dog"], top=60)
    code = DENSE[3].copy()
    code[0] = 0
    cosine = DENSE @ code / np.linalg.norm(code) / np.maximum(np.linalg.norm(DENSE, axis=1), 1e-12)
    cosine[3] = 0
    # Equal cosines may differ in the last bit, so the order is judged by the values.
    assert set(found.rows) == set(np.flatnonzero(cosine > 0))
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hit in found:
        assert hit.score == pytest.approx(cosine[hit.row], rel=1e-12)
        assert sum(m.share for m in hit.matched) == pytest.approx(hit.score, rel=1e-12)
        assert "dog" not in {m.text for m in hit.matched}
    strict = INDEX.like(3, without="dog", top=60, strict=True)
    assert strict.rows == [i for i in found.rows if DENSE[i, 0] == 0]
    assert str(strict).startswith("like 3 without dog")


def test_like_takes_weights_of_an_image_outside():
    assert INDEX.like(DENSE[3], top=1).rows == [3] and INDEX.like(WEIGHTS[3], top=1).hits[0].score == pytest.approx(1)


def test_like_says_what_does_not_fit():
    with pytest.raises(ValueError, match="There is no image 60; expected a number from 0 to 59"):
        INDEX.like(60)
    with pytest.raises(ValueError, match="nothing is left"):
        INDEX.like(0, without=TEXTS)
    with pytest.raises(ValueError, match="'dgo' is not among"):
        INDEX.like(0, without=["dgo"])
    with pytest.raises(ValueError, match=r"shape \(5,\); expected \(6,\)"):
        INDEX.like(np.ones(5))
    with pytest.raises(ValueError, match="2 ids were given for 60 images"):
        ConceptIndex(WEIGHTS, TEXTS, ["a", "b"])


def test_a_concept_nobody_has():
    index = ConceptIndex([[0.0, 0.2]], ["never", "always"])
    assert index.query("never").rows == [] and index.query("NOT never").rows == [0]
    assert "nothing to show" in str(index.query("never"))
