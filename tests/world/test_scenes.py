"""Scenes: what is drawn is what is said, and nothing else moves."""

import random

import numpy as np
import pytest

from vlsae.world import SceneOptions, concepts, counterfactual, is_held_out, scenes
from vlsae.world.captions import random_caption
from vlsae.world.icons import icons, style_held_out
from vlsae.world.layout import COLORS, OBJECT_COLORS, spurious_background
from vlsae.world.render import place
from vlsae.world.tiny_clip import lexicon


def test_enough_concepts_in_both_fonts():
    assert len(icons()) >= 120
    assert sum(len(icon.glyphs) == 2 for icon in icons().values()) >= 80
    assert len(concepts()["group"]) == 8


def test_same_seed_same_bytes_and_a_longer_sequence_begins_alike():
    a, b = scenes(5, seed=3), scenes(50, seed=3)
    assert all(np.array_equal(x.pixels, y.pixels) and x.caption == y.caption for x, y in zip(a, b, strict=False))
    assert not np.array_equal(a[0].pixels, scenes(1, seed=4)[0].pixels)
    assert scenes(9, seed=3)[4:6][1].caption == b[5].caption


def test_agreed_attributes():
    scene = scenes(1, seed=0)[0]
    assert scene.image.mode == "RGB"
    assert scene.masks.dtype == bool
    assert scene.masks.shape == (len(scene.objects), 64, 64)
    for o in scene.objects:
        assert o.name in concepts()["object"]
        assert o.group == icons()[o.name].group
        assert o.color in OBJECT_COLORS
        assert o.size in concepts()["size"]
        assert o.font in icons()[o.name].fonts
    assert f"{scene.background} background" in concepts()["background"]
    assert scene.texture in concepts()["texture"]


def test_masks_are_the_objects_ink():
    """At 256 px strokes are wide, so the median pixel of a mask is pure ink: its jittered colour, rounded."""
    for scene in scenes(12, seed=8, resolution=256):
        for o, mask in zip(scene.objects, scene.masks, strict=True):
            seen = np.median(scene.pixels[mask], axis=0)
            assert np.abs(seen - np.clip(np.add(COLORS[o.color], o.jitter), 0, 255)).max() <= 2, (o, seen)


def test_masks_do_not_overlap():
    assert all(scene.masks.sum(0).max() <= 1 for scene in scenes(100, seed=9))


def test_names_colours_and_ground_are_uniform():
    """10,000 draws: no object is missing, and no object is drawn more than twice as often as expected (73 +- 8.5)."""
    counts = dict.fromkeys(concepts()["object"], 0)
    n = 0
    for scene in scenes(4000, seed=1):
        for o in scene.objects:
            counts[o.name] += 1
            n += 1
    expected = n / len(counts)
    assert 0.5 * expected < min(counts.values())
    assert max(counts.values()) < 1.6 * expected


@pytest.mark.parametrize("resolution", [32, 100, 224])
def test_any_resolution_shows_the_same_scene(resolution):
    small, large = scenes(8, seed=2)[5], scenes(8, seed=2, resolution=resolution)[5]
    assert large.image.size == (resolution, resolution)
    assert large.caption == small.caption
    share_small, share_large = small.masks.mean((1, 2)), large.masks.mean((1, 2))
    assert np.abs(share_small - share_large).max() < 0.06


@pytest.mark.parametrize("attribute", ["name", "color", "size"])
def test_counterfactual_changes_only_its_object(attribute):
    for scene in scenes(30, seed=11, n_objects=(0, 1, 1, 1)):
        other = counterfactual(scene, attribute, obj=1)
        changed = (scene.pixels != other.pixels).any(-1)
        allowed = np.zeros((64, 64), bool)
        for o in (scene.objects[1], other.objects[1]):
            allowed[o.y : o.y + o.extent, o.x : o.x + o.extent] = True
        assert changed.any()
        assert not (changed & ~allowed).any()
        assert getattr(other.objects[1], attribute) != getattr(scene.objects[1], attribute)
        assert other.objects[0] == scene.objects[0]


@pytest.mark.parametrize("attribute", ["background", "texture"])
def test_counterfactual_ground_leaves_the_ink_alone(attribute):
    for scene in scenes(30, seed=12):
        other = counterfactual(scene, attribute)
        solid = np.zeros((64, 64), bool)
        for o, mask in zip(scene.objects, scene.masks, strict=True):
            rows, columns, ink, _ = place(o, 64)
            solid[rows, columns] |= mask[rows, columns] & (ink[..., 0] >= 1)
        assert np.array_equal(scene.pixels[solid], other.pixels[solid])
        assert np.array_equal(scene.masks, other.masks)
        assert (scene.pixels != other.pixels).any()


def test_counterfactual_refuses_nonsense():
    scene = scenes(1)[0]
    with pytest.raises(ValueError, match="Unknown attribute 'mood'"):
        counterfactual(scene, "mood")
    with pytest.raises(ValueError, match="'plaid' is not a possible texture"):
        counterfactual(scene, "texture", "plaid")


def test_held_out_combinations_are_one_colour_of_ten_and_kept_apart():
    per_object = [sum(is_held_out(n, c) for c in OBJECT_COLORS) for n in concepts()["object"]]
    assert set(per_object) == {1}
    assert not any(is_held_out(o.name, o.color) for s in scenes(300, combinations="seen") for o in s.objects)
    assert all(is_held_out(o.name, o.color) for s in scenes(300, combinations="held_out") for o in s.objects)


def test_held_out_style():
    held = style_held_out()
    assert len(held) == 10
    seen = [o for s in scenes(400, styles="seen") for o in s.objects]
    assert all(o.font == "fontawesome" for o in seen if o.name in held)
    unseen = [o for s in scenes(100, styles="held_out") for o in s.objects]
    assert all(o.name in held and o.font == "materialdesign" for o in unseen)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_spurious_rate(rate):
    """Share of scenes with the tied ground: rate + (1 - rate)/11, within 4 standard errors of 2,000 draws."""
    drawn = scenes(2000, seed=6, spurious=rate)
    share = np.mean([s.background == spurious_background(s.objects[0].name) for s in drawn])
    expected = rate + (1 - rate) / 11
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000)


def test_overlay_writes_another_concept():
    plain, written = scenes(40, seed=7), scenes(40, seed=7, overlay=1.0)
    for a, b in zip(plain, written, strict=True):
        assert b.layout.overlay not in [o.name for o in b.objects]
        rows = np.flatnonzero((a.pixels != b.pixels).any((1, 2)))
        assert len(rows)
        assert rows.max() - rows.min() <= 16
        assert (b.pixels[rows.min() + 3 : rows.max() - 2].min(axis=(1, 2)) < 80).any()


def test_align_puts_corners_on_the_grid():
    drawn = scenes(100, seed=4, align=8)
    assert all(o.x % 8 == 0 and o.y % 8 == 0 for s in drawn for o in s.objects)
    assert any(o.x % 8 for s in scenes(100, seed=4) for o in s.objects)


def test_captions_say_what_is_there():
    for scene in scenes(100, seed=13):
        for o in scene.objects:
            assert f"{o.color} {o.name}" in scene.caption
        assert scene.caption.endswith("background")
        assert set(scene.caption.split()) <= set(lexicon())
        assert set(random_caption(scene.layout, random.Random(0)).split()) <= set(lexicon())


def test_relation_of_two_objects():
    for scene in scenes(50, seed=14, n_objects=(0, 1, 0, 0)):
        (ax, ay), (bx, by) = (o.center for o in scene.objects)
        word = next(w for w in ("left of", "right of", "above", "below") if w in scene.caption)
        assert {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay >= by}[word]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": "new"}, "styles='new' is unknown"),
        ({"spurious": 1.5}, "not a probability"),
        ({"n_objects": (0, 0, 0, 0)}, "4 weights"),
        ({"names": ("cat", "qat")}, "Unknown concept 'qat'"),
        ({"align": 99}, "align=99"),
        ({"fonts": ("arial",)}, "No concept can be drawn"),
    ],
)
def test_impossible_options_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        SceneOptions(**options)


def test_negative_number_and_tiny_resolution():
    with pytest.raises(ValueError, match="n=-1"):
        scenes(-1)
    with pytest.raises(ValueError, match="at least 16"):
        _ = scenes(1, resolution=8)[0].pixels
