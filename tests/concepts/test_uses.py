"""What follows where a concept is changed: search and classifiers, with planted concepts (card 28)."""

import itertools

import pytest
import torch

from vlsae.concepts import (
    ConceptGallery,
    concept_directions,
    concept_effects,
    concept_gap,
    strength_curve,
    with_strengths,
)
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary
from vlsae.dictionaries.transform import InputTransform

D, OBJECTS, COLOURS = 12, 4, 3


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _truth(family=ReLUDictionary, **settings):
    """Orthonormal concepts: four objects and three colours in twelve dimensions, read and written exactly."""
    atoms = torch.linalg.qr(torch.randn(D, D, generator=_generator(1)))[0][: OBJECTS + COLOURS]
    sae = family(D, len(atoms), **settings)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
    return sae


def _things(sae):
    """An embedding for every object in every colour, with a part that no concept explains."""
    pairs = list(itertools.product(range(OBJECTS), range(COLOURS)))
    x = torch.stack([sae.atoms[o] + 0.8 * sae.atoms[OBJECTS + c] for o, c in pairs])
    outside = torch.randn(len(pairs), D, generator=_generator(2))
    return pairs, x + 0.1 * (outside - outside @ sae.atoms.T @ sae.atoms)


@pytest.mark.parametrize("kind", ["none", "centre_sqrt_d", "standardise"])
def test_a_strength_is_set_and_the_rest_is_kept(kind):
    """Orthonormal atoms: the edited embedding has the wanted code, the others' codes, and the same error.

    For things whose concepts are active; one below its threshold stays below by as much.
    """
    sae = _truth()
    _, x = _things(sae)
    sae.transform = InputTransform.fit(x, kind)
    x = x[(sae.encode(x)[:, [2, OBJECTS]] > 0.01).all(1)]
    assert len(x) > 0
    changed = with_strengths(sae, x, {2: 1.5, OBJECTS: 0.25})
    z, after = sae.encode(x), sae.encode(changed)
    expected = z.clone()
    expected[:, 2], expected[:, OBJECTS] = 1.5, 0.25
    assert torch.allclose(after, expected, atol=1e-5)
    assert torch.allclose(x - sae(x), changed - sae(changed), atol=1e-5)
    unit = torch.eye(sae.n_latents)
    assert torch.allclose(sae.decode(unit) - sae.decode(0 * unit), concept_directions(sae), atol=1e-5)
    now = with_strengths(sae, x[:1], {2: z[0, 2].item()})
    assert torch.allclose(now, x[:1], atol=1e-6)


@pytest.mark.parametrize("space", ["embedding", "concepts"])
@pytest.mark.parametrize("kind", ["none", "centre"])
def test_another_attribute_finds_the_thing_that_has_it(space, kind):
    """Card 28: with the colour's concept exchanged, the nearest is the same object in the other colour, for every one."""
    sae = _truth()
    pairs, x = _things(sae)
    sae.transform = InputTransform.fit(x, kind)
    gallery = ConceptGallery(sae, x)
    z = sae.encode(x)
    for row, (o, c) in enumerate(pairs):
        assert gallery.search(x[row], space=space)[0].row == row
        other = (c + 1) % COLOURS
        wanted = {OBJECTS + c: 0.0, OBJECTS + other: z[row, OBJECTS + c].item()}
        best = gallery.search(x[row], wanted, space=space, explain=2)
        assert pairs[best[0].row] == (o, other)
        assert {latent for latent, _ in best[0].shared} == {o, OBJECTS + other}


def test_similarities_are_cosines_and_their_parts_add_up():
    sae = TopKDictionary(D, 40, k=5, seed=3)
    x = torch.randn(30, D, generator=_generator(4))
    gallery, z = ConceptGallery(sae, x), sae.encode(x)
    for space, vectors in (("embedding", x), ("concepts", z)):
        found = gallery.search(x[7], space=space, top=30, explain=40)
        cosine = torch.nn.functional.cosine_similarity(vectors[7], vectors)
        assert [hit.row for hit in found] == cosine.argsort(
            descending=True, stable=True
        ).tolist() or space == "concepts"
        assert [hit.similarity for hit in found] == pytest.approx(
            cosine.sort(descending=True).values.tolist(), abs=1e-6
        )
    for hit in found:
        assert sum(share for _, share in hit.shared) == pytest.approx(hit.similarity, abs=1e-6)


@pytest.mark.parametrize("kind", ["none", "centre_sqrt_d"])
def test_a_logit_changes_by_delta_times_the_inner_product(kind):
    """Card 28, with the classifier applied to edited embeddings beside the formula, for codes of any family."""
    sae = TopKDictionary(D, 40, k=5, seed=5)
    x = torch.randn(20, D, generator=_generator(6)) + 1
    sae.transform = InputTransform.fit(x, kind)
    weight, bias = torch.randn(3, D, generator=_generator(7)), torch.randn(3, generator=_generator(8))
    strengths, z = [0.0, 0.5, 4.0], sae.encode(x)
    latent = int((z > 0).sum(0).argmax())
    curve = strength_curve(sae, weight, bias, x, latent, strengths)
    for s, logits in zip(strengths, curve.logits, strict=True):
        delta = s - z[:, latent]
        exact = x @ weight.T + bias + delta[:, None] * (weight @ concept_directions(sae)[latent])
        assert torch.allclose(logits, exact, atol=1e-5)
        assert torch.allclose(logits, with_strengths(sae, x, {latent: s}) @ weight.T + bias, atol=1e-5)
    assert torch.allclose(curve.probabilities.sum(2), torch.ones(3, 20))
    one = strength_curve(sae, weight[:1], 0.0, x, latent, strengths)
    assert torch.equal(one.probabilities, torch.sigmoid(one.logits))
    assert torch.allclose(concept_effects(sae, weight)[latent], weight @ concept_directions(sae)[latent], atol=1e-6)


def test_a_shortcut_is_what_two_groups_differ_by():
    """A probe of object 0, learned where colour 0 comes with it nine times of ten, and judged on other objects.

    Least squares on independent concepts gives the colour a weight; the gap between things with and without it is its
    strength times that weight, and no other concept's part is a tenth of it.
    """
    sae = _truth()
    n = 4000
    is_object, coin = torch.rand(n, generator=_generator(9)) < 0.5, torch.rand(n, generator=_generator(10))
    coloured = coin < torch.where(is_object, 0.9, 0.1)
    z = (torch.rand(n, OBJECTS + COLOURS, generator=_generator(11)) < 0.3).float()
    z[:, 0], z[:, OBJECTS] = is_object.float() * torch.rand(n, generator=_generator(12)), coloured.float()
    x = z @ sae.atoms + 0.05 * torch.randn(n, D, generator=_generator(13))
    weight = torch.linalg.lstsq(x - x.mean(0), is_object.float()[:, None] - is_object.float().mean()).solution.T
    others, without = x[~is_object & coloured], x[~is_object & ~coloured]
    gap = concept_gap(sae, weight, others, without)
    assert torch.allclose(gap.total, (others @ weight.T).mean(0) - (without @ weight.T).mean(0), atol=1e-5)
    assert torch.allclose(gap.total, gap.concepts.sum(0) + gap.rest, atol=1e-6)
    (latent, part), (_, next_part) = gap.largest(n=2)
    assert latent == OBJECTS and abs(next_part) < 0.1 * part
    assert part == pytest.approx(concept_effects(sae, weight)[OBJECTS, 0].item(), rel=0.05)  # mean strength 1, less 0


def test_messages():
    sae = _truth()
    _, x = _things(sae)
    gallery = ConceptGallery(sae, x)
    with pytest.raises(ValueError, match=r"Latents \[9\] do not exist; the dictionary has 0 to 6"):
        gallery.search(x[0], {9: 1.0})
    with pytest.raises(ValueError, match="space='codes' and top=10; expected"):
        gallery.search(x[0], space="codes")
    with pytest.raises(ValueError, match=r"The gallery has shape \[0, 12\]"):
        ConceptGallery(sae, x[:0])
    with pytest.raises(ValueError, match=r"weight is \[12\]; expected \[C, 12\]"):
        strength_curve(sae, torch.ones(D), 0.0, x, 0, [1.0])
    with pytest.raises(ValueError, match="The groups have 0 and 12 embeddings"):
        concept_gap(sae, torch.ones(1, D), x[:0], x)
    sae.transform = InputTransform(D, "unit")
    with pytest.raises(ValueError, match="Codes behind the transform 'unit'"):
        with_strengths(sae, x, {0: 1.0})
